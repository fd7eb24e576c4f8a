"""The original's path to these ops. Importing it needs no Triton."""

from mamba_ssm.ops.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn

__all__ = ["RMSNorm", "layer_norm_fn", "rms_norm_fn"]
