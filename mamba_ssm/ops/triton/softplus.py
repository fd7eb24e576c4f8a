"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("softplus as a Triton function of its own")
