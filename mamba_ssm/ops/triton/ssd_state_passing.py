"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("the kernels of Mamba-2")
