"""One step of the selective scan: the door. Shapes: see ops/reference/selective_state_update.py."""

from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.reference.selective_state_update import selective_state_update as selective_state_update_ref

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Move state (B, D, N) or (B, H, D, N) on by one token, in place: y, of x's shape, (B, D) or (B, H, D)."""
    run = backend.module("selective_state_update", x).selective_state_update
    return run(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
