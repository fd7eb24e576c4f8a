"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("tensor and sequence parallelism")
