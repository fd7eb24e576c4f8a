"""One step of the selective scan on a CPU: exp2 and one batched product, where the reference has exp and a sum.

Letters: B batch, H heads, D channels (of a head), N state, G groups of heads.
"""

import math

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
    """Shapes and results are the reference's; state is updated in place, so there are no gradients."""
    work = torch.promote_types(x.dtype, torch.float32)
    heads = () if state.dim() == 3 else (state.shape[1],)
    u, step = x.to(work), dt.to(work)
    if dt_bias is not None:
        step = step + dt_bias.to(work)
    if dt_softplus:
        step = F.softplus(step)
    B, C = (_by_head(m.to(work), heads) for m in (B, C))
    # exp2 is several times as fast as exp.
    h = torch.exp2(step.unsqueeze(-1) * (A.to(work) / math.log(2))) * state.to(work)
    h = torch.addcmul(h, (step * u).unsqueeze(-1), B)
    state.copy_(h)
    with torch.autocast(x.device.type, enabled=False):
        y = (C @ h.transpose(-1, -2)).squeeze(-2)
    if D is not None:
        y = torch.addcmul(y, u, D.to(work))
    if z is not None:
        y = y * F.silu(z.to(work))
    return y.to(x.dtype)


def _by_head(m: Tensor, heads: tuple[int, ...]) -> Tensor:
    """(B, N) or (B, G, N) to (B, 1, N), or with heads to (B, H, 1, N)."""
    if m.dim() == 3:
        m = m.repeat_interleave(math.prod(heads) // m.shape[1], dim=1)
        return m.unsqueeze(2) if heads else m
    return m.view(m.shape[0], *(1 for _ in heads), 1, m.shape[1])
