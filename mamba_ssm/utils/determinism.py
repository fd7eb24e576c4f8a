"""Not in this package."""

from mamba_ssm.errors import LeftOutError

raise LeftOutError("a switch for determinism besides torch.use_deterministic_algorithms, which it heeds")
