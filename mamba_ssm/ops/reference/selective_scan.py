"""The selective scan in plain PyTorch, one step of time after the other: the specification of every other back-end.

Letters: B batch, D channels, L length, N state, G groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t and y_t = C_t h_t + D u_t, gated by silu(z_t).

    Source: Gu & Dao 2023, arXiv 2312.00752, algorithm 2, with A discretised by zero-order hold (equation 4) and B by
    its first-order form Δ B. Complex A stands for pairs of conjugate states, so that y_t = 2 Re(C_t h_t).

    Args:
        u, delta, z: (B, D, L), any strides, fp32, fp16, bf16 or fp64.
        A: (D, N), real or complex.
        B, C: constant (D, N), of A's kind; or by token, (B, N, L) or (B, G, N, L), where channel d reads group
            d // (D / G). By token and with complex A: real, (..., N, 2L), real and imaginary parts interleaved.
        D, delta_bias: (D,).
        delta_softplus: Δ = softplus(delta + delta_bias) instead of delta + delta_bias.
        initial_state: (B, D, N), the state before the first token; zero when absent.
        seq_idx: (B, L) integers: the sequence that a token belongs to, in a row that packs several one after the other.
            The state is zero again where it changes; initial_state belongs to the first token's sequence.

    Returns:
        out (B, D, L) in u's dtype, or (out, last_state), last_state (B, D, N) in fp32 (complex64 for complex A).
        Everything is computed in fp32, or in fp64 when u is.
    """
    real = torch.promote_types(u.dtype, torch.float32)
    state_dtype = torch.promote_types(real, torch.complex64) if A.is_complex() else real
    batch, dim, length = u.shape
    x, dt = u.to(real), delta.to(real)
    if delta_bias is not None:
        dt = dt + delta_bias.to(real)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    A = A.to(state_dtype)
    B, C = (_by_token(m, dim, state_dtype) for m in (B, C))
    h = (
        u.new_zeros(batch, dim, A.shape[1], dtype=state_dtype)
        if initial_state is None
        else initial_state.to(state_dtype)
    )
    ys = []
    for t in range(length):
        dt_t, B_t, C_t = dt[:, :, t, None], _at(B, t), _at(C, t)
        if seq_idx is not None and t > 0:
            h = h * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None]
        h = torch.exp(dt_t * A) * h + dt_t * B_t * x[:, :, t, None]
        y_t = (h * C_t).sum(-1)
        ys.append(2 * y_t.real if y_t.is_complex() else y_t)
    y = torch.stack(ys, dim=-1) if ys else torch.zeros_like(x)
    if D is not None:
        y = y + x * D.to(real)[:, None]
    if z is not None:
        y = y * F.silu(z.to(real))
    out = y.to(u.dtype)
    return (out, h) if return_last_state else out


def _by_token(m: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Bring B or C to (D, N) or (B, D, N, L)."""
    if m.dim() == 2:
        return m.to(dtype)
    if dtype.is_complex and not m.is_complex():
        m = torch.complex(m[..., 0::2].to(dtype.to_real()), m[..., 1::2].to(dtype.to_real()))
    if m.dim() == 3:
        m = m.unsqueeze(1)
    batch, groups, state, length = m.shape
    m = m.to(dtype).unsqueeze(2).expand(batch, groups, dim // groups, state, length)
    return m.reshape(batch, dim, state, length) if groups > 1 else m.squeeze(1)


def _at(m: Tensor, t: int) -> Tensor:
    return m if m.dim() == 2 else m[..., t]
