"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("the scan of Mamba-2")
