"""The selective scan on a CPU: serial in time, vectors of channels, all states of a block of channels in the cache.

A block of up to 128 channels walks through time. Each step costs a multiplication, an exponential (a dozen
instructions) and three fused multiply-adds for every state, which are the bound: memory is read once. Work is cut by
rows of the batch, blocks of channels and, where these are fewer than the threads, segments of time: a first walk finds
what state each segment adds to nothing, and the second starts from the states that follow. The backward pass keeps the
state before every `TILE` steps, walks forwards through a tile again, and then backwards.

Letters: B batch, D channels, L length, N state, G groups, E = D / G channels of a group.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_ssm.ops.cpu.arithmetic import LN2
from mamba_ssm.ops.cpu.kernel import addresses, neighbours_last, rows, threads_for
from mamba_ssm.ops.cpu.selective_scan_kernels import (
    LANES,
    TILE,
    WIDEST,
    block_floats,
    scan_backward,
    scan_forward,
    tile_floats,
)
from mamba_ssm.ops.layout import channel_last


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
    """Shapes and results are the reference's, for real A, and B and C by token; computed in fp32."""
    B, C = _by_group(B, C, u.shape)
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    out, last = _Scan.apply(
        *(neighbours_last(m.transpose(1, 2)) for m in (u, delta)),
        A,
        B,
        C,
        D,
        None if z is None else neighbours_last(z.transpose(1, 2)),
        delta_bias,
        initial_state,
        None if seq_idx is None else seq_idx.to(torch.int32).contiguous(),
        delta_softplus,
        torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in given),
    )
    out = out.transpose(1, 2)
    if not channel_last(u):
        out = out.contiguous()
    return (out, last) if return_last_state else out


def _by_group(B: Tensor, C: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Bring B and C to fp32 (B, L, G, N); where one of them is constant over time, every channel is a group."""
    batch, dim, length = shape
    constant = B.dim() == 2 or C.dim() == 2

    def bring(m: Tensor) -> Tensor:
        if m.dim() == 2:
            m = m[None, :, :, None].expand(batch, -1, -1, length)
        m = m.unsqueeze(1) if m.dim() == 3 else m
        m = m.repeat_interleave(dim // m.shape[1], dim=1) if constant else m
        return m.permute(0, 3, 1, 2).float().contiguous()

    return bring(B), bring(C)


class _Scan(torch.autograd.Function):
    """u, delta, z: (B, L, D). B, C: (B, L, G, N). out (B, L, D) and the last state (B, D, N)."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
        initial: Tensor | None,
        seq: Tensor | None,
        softplus: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        at = _Parameters(A, D, bias)
        out, last, kept = _forward(u, delta, at, B, C, z, initial, seq, softplus, keep)
        if keep:
            ctx.save_for_backward(u, delta, A, B, C, D, z, bias, initial, seq, kept)
            ctx.softplus = softplus
        return out, last.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, bias, initial, seq, kept = ctx.saved_tensors
        batch, length, dim = u.shape
        groups, states = B.shape[2:]
        at = _Parameters(A, D, bias)
        dout = neighbours_last(dout)
        du, ddelta = u.new_empty(u.shape), delta.new_empty(delta.shape)
        dz = None if z is None else z.new_empty(z.shape)
        width, blocks = _blocks(dim // groups, batch * groups)
        threads = threads_for(batch * groups * blocks, length * width * states)
        dA, dD, d_bias = (A.new_empty(batch, n, dim, dtype=torch.float32) for n in (states, 1, 1))
        dB, dC = (B.new_zeros(threads, *B.shape) for _ in range(2))
        d_initial = torch.empty_like(dA)
        # A local, for a gradient that is passed by its address must outlive the call.
        d_last = d_last.transpose(1, 2).float().contiguous()
        scan_backward(
            threads,
            tile_floats(states, width),
            **_sizes(u, B, width, 1, seq, at, softplus=ctx.softplus),
            **addresses(B=B, C=C, kept=kept, d_last=d_last, dA=dA, dB=dB, dC=dC, dD=dD, d_bias=d_bias),
            **addresses(d_initial=d_initial, last=None),
            **rows("u", u),
            **rows("delta", delta),
            **rows("z", z),
            **rows("dout", dout),
            **rows("du", du),
            **rows("ddelta", ddelta),
            **rows("dz", dz),
        )
        return (
            du,
            ddelta,
            dA.sum(0).t().to(A.dtype),
            dB.sum(0),
            dC.sum(0),
            None if D is None else dD.sum((0, 1)).to(D.dtype),
            dz,
            None if bias is None else d_bias.sum((0, 1)).to(bias.dtype),
            None if initial is None else d_initial.transpose(1, 2).to(initial.dtype),
            None,
            None,
            None,
        )


class _Parameters:
    """What belongs to a channel, as the kernels read it: A (N, D) for exp2, D and bias (D,)."""

    def __init__(self, A: Tensor, D: Tensor | None, bias: Tensor | None) -> None:
        dim = A.shape[0]
        self.A = (A.float() / LN2.item()).t().contiguous()
        self.D, self.bias = (A.new_zeros(dim) if m is None else m.float().contiguous() for m in (D, bias))


def _forward(
    u: Tensor,
    delta: Tensor,
    at: _Parameters,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    initial: Tensor | None,
    seq: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """out (B, L, D), the last state (B, N, D), and if asked the states before each tile (B, tiles, N, D)."""
    batch, length, dim = u.shape
    groups, states = B.shape[2:]
    width, blocks = _blocks(dim // groups, batch * groups)
    threads = threads_for(batch * groups * blocks * max(1, length // TILE), TILE * width * states)
    segments = _segments(batch * groups * blocks, length, threads)
    out = u.new_empty(u.shape)
    h = u.new_zeros(batch, states, dim, dtype=torch.float32)
    if initial is not None:
        h = initial.float().transpose(1, 2).contiguous()
    kept = h.new_empty(batch, -(-length // TILE), states, dim) if keep else None
    last = h.new_empty(batch, segments, states, dim)
    common = {
        **_sizes(u, B, width, segments, seq, at, softplus=softplus),
        **addresses(B=B, C=C),
        **rows("u", u),
        **rows("delta", delta),
    }
    if segments > 1:
        dt_sum = h.new_empty(batch, segments, 1, dim)
        nothing = {**rows("z", None), **rows("out", None), **addresses(initial=None, kept=None)}
        scan_forward(threads, block_floats(states, width), **common, **nothing, **addresses(last=last, dt_sum=dt_sum))
        starts = [h]
        for s in range(segments - 1):
            # A sum of infinity says that the segment has forgotten what was before it, also where A is 0.
            forgotten = dt_sum[:, s].isinf()
            carried = torch.exp2(dt_sum[:, s] * at.A) * starts[-1]
            starts.append(torch.where(forgotten, last[:, s], carried + last[:, s]))
        h = torch.stack(starts, dim=1)
    scan_forward(
        threads,
        block_floats(states, width),
        **common,
        **addresses(initial=h, last=last, kept=kept, dt_sum=None),
        **rows("z", z),
        **rows("out", out),
    )
    return out, last[:, -1], kept


def _blocks(channels: int, others: int) -> tuple[int, int]:
    """Channels of a block, and how many blocks a group of so many has: enough for all threads, where it has them."""
    width = min(WIDEST, -(-channels // LANES) * LANES)
    while width > LANES * 2 and others * -(-channels // width) < torch.get_num_threads():
        width = -(-width // 2 // LANES) * LANES
    return width, -(-channels // width)


def _segments(blocks: int, length: int, threads: int) -> int:
    """Into how many parts a time is cut: two walks are only worth it with more than two threads a block."""
    segments = min(threads // max(1, blocks), length // (4 * TILE))
    return segments if segments > 2 else 1


def _sizes(
    u: Tensor, B: Tensor, width: int, segments: int, seq: Tensor | None, at: _Parameters, softplus: bool
) -> dict[str, int]:
    batch, length, dim = u.shape
    groups, states = B.shape[2:]
    sizes = {"batch": batch, "dim": dim, "length": length, "states": states, "groups": groups}
    shared = addresses(A=at.A, D=at.D, bias=at.bias, seq=seq)
    return {**sizes, **shared, "width": width, "segments": segments, "softplus": softplus}
