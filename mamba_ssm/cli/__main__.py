"""``python -m mamba_ssm.cli``: the command, for launchers that take a module."""

from mamba_ssm.cli.main import app

app(prog_name="mamba-esi")
