"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("attention layers")
