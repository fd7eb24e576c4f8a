"""The selective scan on a CPU: the reference's mathematics in tiles that stay in the cache.

A tile holds some rows of the batch and some steps of time. Decays and inputs of all its steps are computed at once; the
recurrence itself is then a single fused multiply-add a step, and the outputs of all steps are one batched product.
The backward pass keeps only the state at the start of each tile, and recomputes the states inside.

Letters: B batch, D channels, L length, N state, G groups, E = D / G channels of a group.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Measured with 1 MiB of cache a core. Numbers in one buffer of a tile and in one step of it, for each thread:
TILE, STEP = 1 << 18, 1 << 15
# Numbers of u in a block where nothing is recorded; steps of a tile where its first state is, for the backward pass.
BLOCK = 1 << 18
STEPS_KEPT = 16


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
    """Shapes and results are the reference's, for real A. out has u's memory layout: (B, D, L), or (B, L, D)."""
    real = torch.promote_types(u.dtype, torch.float32)
    B, C = _by_group(B, C, u.shape)
    A = A.to(real)
    h = u.new_zeros(u.shape[0], *A.shape, dtype=real) if initial_state is None else initial_state.to(real)
    inputs = (u, delta, A, B, C, D, z, delta_bias, h)
    resets = None if seq_idx is None else F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))[..., : u.shape[2]]
    if torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in inputs):
        y, h = _block(u, delta, A, B, C, D, z, delta_bias, delta_softplus, h, resets)
        out = torch.empty_like(u).copy_(y)
        return (out, h) if return_last_state else out
    out, last = _in_blocks(u, delta, A, B, C, D, z, delta_bias, delta_softplus, h, resets)
    return (out, last) if return_last_state else out


@torch.no_grad()
def _in_blocks(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    h: Tensor,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`_block` over blocks of rows and of time one after the other, so that what it needs in between stays small."""
    out, last = torch.empty_like(u), torch.empty_like(h)
    batch, dim, length = u.shape
    rows = max(1, min(batch, STEP * torch.get_num_threads() // max(1, A.numel())))
    span = max(1, BLOCK // (rows * max(1, dim)))
    for r in (slice(i, i + rows) for i in range(0, batch, rows)):
        carry = h[r]
        for t in (slice(i, i + span) for i in range(0, length, span)):
            gate = None if z is None else z[r, :, t]
            at = (r, slice(None), t)
            begins = None if resets is None else resets[r, t]
            y, carry = _block(
                u[at], delta[at], A, B[r, ..., t], C[r, ..., t], D, gate, delta_bias, delta_softplus, carry, begins
            )
            out[at] = y
        last[r] = carry
    return out, last


def _block(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    h: Tensor,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The whole scan, where B and C are (B, G, N, L): y (B, D, L) and the last state (B, D, N), in A's dtype.

    resets: (B, L), true where a sequence begins.
    """
    x, dt = _channels_last(u, A.dtype), _channels_last(delta, A.dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(A.dtype)
    if delta_softplus:
        dt = F.softplus(dt)
    groups = (B.shape[1], u.shape[1] // B.shape[1])
    inputs = (
        dt.transpose(0, 1).unflatten(-1, groups),
        (dt * x).transpose(0, 1).unflatten(-1, groups),
        A.unflatten(0, groups).transpose(1, 2).contiguous(),
        B.permute(3, 0, 1, 2).to(A.dtype),
        C.permute(3, 0, 1, 2).to(A.dtype),
        h.unflatten(1, groups).transpose(2, 3),
        None if resets is None else resets.transpose(0, 1),
    )
    if torch.is_grad_enabled():
        y, h = _Scan.apply(*inputs)
    else:
        y, h, _ = _scan(*inputs)
    y = y.flatten(2).transpose(0, 1)
    if D is not None:
        y = torch.addcmul(y, x, D.to(A.dtype))
    if z is not None:
        y = y * F.silu(_channels_last(z, A.dtype))
    return y.transpose(1, 2), h.transpose(2, 3).flatten(1, 2)


def _channels_last(m: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, L) to contiguous (B, L, D)."""
    return m.transpose(1, 2).to(dtype).contiguous()


def _by_group(B: Tensor, C: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Bring B and C to (B, G, N, L); where one of them is constant over time, every channel is a group."""
    batch, dim, length = shape
    constant = B.dim() == 2 or C.dim() == 2

    def bring(m: Tensor) -> Tensor:
        if m.dim() == 2:
            return m[None, :, :, None].expand(batch, -1, -1, length)
        m = m if m.dim() == 4 else m.unsqueeze(1)
        return m.repeat_interleave(dim // m.shape[1], dim=1) if constant else m

    return bring(B), bring(C)


class _Tile:
    """Buffers of T steps of R rows: decays (T, R, G, N, E), and states (T + 1, R, G, N, E), the first the carry."""

    def __init__(self, steps: int, rows: int, A: Tensor) -> None:
        self.steps = steps
        self.log2_A = A / math.log(2)  # exp2 is several times as fast as exp
        self.decay = A.new_empty(steps, rows, *A.shape)
        self.state = A.new_empty(steps + 1, rows, *A.shape)
        self.decays, self.states = self.decay.unbind(), self.state.unbind()

    def run(self, h: Tensor, dt: Tensor, v: Tensor, B: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Go from state h over dt, v (T, R, G, E) and B (T, R, G, N): decays and states, good until the next run.

        resets: (T, R), true where the state is forgotten.
        """
        n = len(dt)
        decay, state = self.decay[:n], self.state[: n + 1]
        torch.mul(dt.unsqueeze(-2), self.log2_A, out=decay).exp2_()
        if resets is not None:
            decay.masked_fill_(resets[..., None, None, None], 0)
        state[0] = h
        torch.mul(v.unsqueeze(-2), B.unsqueeze(-1), out=state[1:])
        for t in range(n):
            self.states[t + 1].addcmul_(self.decays[t], self.states[t])
        return decay, state


def _tiles(dt: Tensor, A: Tensor, keep: bool) -> Iterator[tuple[slice, _Tile]]:
    """Cut the batch of dt (L, B, G, E) into rows that fit a tile together."""
    length, batch = dt.shape[:2]
    threads, width = torch.get_num_threads(), max(1, A.numel())
    step = min(STEP, TILE // STEPS_KEPT) if keep else STEP
    rows = max(1, min(batch, step * threads // width))
    steps = STEPS_KEPT if keep else max(1, min(length, TILE * threads // (rows * width)))
    for r in range(0, batch, rows):
        part = slice(r, min(r + rows, batch))
        yield part, _Tile(steps, part.stop - r, A)


@torch.no_grad()
def _scan(
    dt: Tensor,
    v: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h: Tensor,
    resets: Tensor | None,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """h_t = exp(Δ_t A) h_{t-1} + B_t v_t and y_t = C_t h_t.

    dt, v: (L, B, G, E). A: (G, N, E). B, C: (L, B, G, N). h: (B, G, N, E), the state before.
    Returns y (L, B, G, E), the last state, and (if they are to keep) the states at the start of each tile.
    """
    length = len(dt)
    y, last = torch.empty_like(v), torch.empty_like(h)
    starts = h.new_empty(-(-length // STEPS_KEPT) if keep else 0, *h.shape)
    for part, tile in _tiles(dt, A, keep):
        carry = h[part]
        for i, t in enumerate(range(0, length, tile.steps)):
            span = (slice(t, t + tile.steps), part)
            if keep:
                starts[i, part] = carry
            _, states = tile.run(carry, dt[span], v[span], B[span], None if resets is None else resets[span])
            y[span] = _weigh(C[span], states[1:])
            carry = states[-1]
        last[part] = carry
    return y, last, starts


class _Scan(torch.autograd.Function):
    """`_scan` with gradients."""

    @staticmethod
    def forward(
        ctx: Any, dt: Tensor, v: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, last, starts = _scan(dt, v, A, B, C, h, resets, keep=True)
        ctx.save_for_backward(dt, v, A, B, C, starts, resets)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        # g_t, the gradient of h_t, is C_t dy_t + exp(Δ_{t+1} A) g_{t+1}; all the others are products with it.
        dt, v, A, B, C, starts, resets = ctx.saved_tensors
        d_dt, d_v, d_B, d_C, d_h = (torch.empty_like(m) for m in (dt, v, B, C, d_last))
        d_A = torch.zeros_like(A)
        for part, tile in _tiles(dt, A, keep=True):
            carry, g_buffer = d_last[part], torch.empty_like(tile.decay)
            gs = g_buffer.unbind()
            for i in reversed(range(len(starts))):
                span = (slice(i * tile.steps, (i + 1) * tile.steps), part)
                begins = None if resets is None else resets[span]
                decay, states = tile.run(starts[i, part], dt[span], v[span], B[span], begins)
                g = torch.mul(dy[span].unsqueeze(-2), C[span].unsqueeze(-1), out=g_buffer[: len(decay)])
                g[-1] += carry
                for t in reversed(range(len(g) - 1)):
                    gs[t].addcmul_(tile.decays[t + 1], gs[t + 1])
                d_C[span] = _weigh(dy[span], states[1:].transpose(-1, -2))
                d_B[span] = _weigh(v[span], g.transpose(-1, -2))
                d_v[span] = _weigh(B[span], g)
                g *= decay
                carry = g[0].clone()
                g *= states[:-1]
                d_dt[span] = torch.mul(g, A, out=decay).sum(-2)
                d_A += g.mul_(dt[span].unsqueeze(-2)).sum((0, 1))
            d_h[part] = carry
        return d_dt, d_v, d_A, d_B, d_C, d_h, None


def _weigh(weights: Tensor, m: Tensor) -> Tensor:
    """(..., K) times (..., K, M): (..., M). A row times a matrix, for MKL is slow where the vector is a column."""
    with torch.autocast(m.device.type, enabled=False):
        return (weights.unsqueeze(-2) @ m).squeeze(-2)
