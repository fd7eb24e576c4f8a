"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("the gated norms of Mamba-2")
