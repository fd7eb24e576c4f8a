"""The original's path to this op. Importing it needs no Triton."""

from mamba_ssm.ops.selective_state_update import selective_state_update, selective_state_update_ref

__all__ = ["selective_state_update", "selective_state_update_ref"]
