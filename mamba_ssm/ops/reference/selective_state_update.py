"""One step of the selective scan in plain PyTorch, for generation.

Letters: B batch, H heads, D channels (of a head), N state, G groups of heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """h ← exp(Δ A) h + Δ B x in place, and y = C h + D x, gated by silu(z) (arXiv 2312.00752, algorithm 2).

    Args:
        state: (B, D, N), or (B, H, D, N); updated in place.
        x, dt, z: (B, D), or (B, H, D).
        A: (D, N), or (H, D, N).
        B, C: (B, N), or (B, G, N), where head h reads group h // (H / G).
        D, dt_bias: (D,), or (H, D).
        dt_softplus: Δ = softplus(dt + dt_bias) instead of dt + dt_bias.

    Returns:
        y, of x's shape and dtype. Computed in fp32, or in fp64 when x is.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    heads = state.shape[1] if state.dim() == 4 else 1
    by_head = (lambda m: m.to(work)) if state.dim() == 4 else (lambda m: m.to(work).unsqueeze(-2))
    xs, step = by_head(x), by_head(dt)
    if dt_bias is not None:
        step = step + by_head(dt_bias)
    if dt_softplus:
        step = F.softplus(step)
    decay = torch.exp(step.unsqueeze(-1) * A.to(work))
    B, C = (_by_head(m.to(work), heads) for m in (B, C))
    # The backward pass needs the state as it was.
    before = state.clone() if torch.is_grad_enabled() else state
    h = decay * before.to(work).reshape(-1, heads, *state.shape[-2:])
    h = torch.addcmul(h, (step * xs).unsqueeze(-1), B)
    state.copy_(h.reshape(state.shape))
    y = (h * C).sum(-1)
    if D is not None:
        y = y + xs * by_head(D)
    if z is not None:
        y = y * F.silu(by_head(z))
    return y.reshape(x.shape).to(x.dtype)


def _by_head(m: Tensor, heads: int) -> Tensor:
    """(B, N) or (B, G, N) to (B, H, 1, N)."""
    if m.dim() == 2:
        m = m.unsqueeze(1)
    return m.repeat_interleave(heads // m.shape[1], dim=1).unsqueeze(2)
