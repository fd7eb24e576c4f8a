"""One step of the selective scan: the door. Shapes: see ops/reference/selective_state_update.py."""

import torch
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
    inputs = (state, x, dt, A, B, C, D, z, dt_bias)
    # A step is for decoding, so the fast ones have no backward; a caller who wants gradients gets the reference's. So
    # does a compiler, which makes one kernel of it with what is around it.
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if wanted or torch.compiler.is_compiling():
        return selective_state_update_ref(*inputs, dt_softplus)
    return backend.module("selective_state_update", x).selective_state_update(*inputs, dt_softplus)
