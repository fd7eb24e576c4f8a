"""Mamba-ESI: a drop-in ``mamba_ssm`` and a Mamba language model that reads whole books."""

__version__ = "2.0.1"
