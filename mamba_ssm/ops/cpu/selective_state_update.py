"""One token of the selective scan on a CPU: threads share rows, heads and blocks of channels.

Letters: B batch, H heads, D channels (of a head), N state, G groups of heads.
"""

from functools import lru_cache
from typing import Any

import torch
from numba import carray
from torch import Tensor

from mamba_ssm.ops.cpu.arithmetic import F32, KINDS, floats, gather, scatter, sigmoid, size_of, softplus, store
from mamba_ssm.ops.cpu.kernel import kernel, record, thread, thread_count, threads_for, use_wide_vectors
from mamba_ssm.ops.cpu.steps import ZERO, move_on
from mamba_ssm.ops.steps import MOST_PLANS, Kind, by_heads, kind, without_numbers

BLOCK = 128  # channels
TENSORS = ("state", "x", "dt", "A", "B", "C", "D", "z", "bias")
SIZES = "batch heads dim states heads_per_B heads_per_C softplus"
KIND_FIELDS = " ".join(f"{name}_kind" for name in TENSORS)
STRIDES = (
    "state_b state_h state_d state_n x_b x_h x_d dt_b dt_h dt_d A_h A_d A_n "
    "B_b B_g B_n C_b C_g C_n D_h D_d z_b z_h z_d bias_h bias_d"
)
UPDATE = record(f"{' '.join(TENSORS)} out {SIZES} {KIND_FIELDS} {STRIDES}")


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
    """Shapes and results are the reference's, computed in fp32; no gradients."""
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    threads, scratch, fields = _plan(tuple([kind(m) for m in tensors]), dt_softplus)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    addresses = {name: 0 if m is None else m.data_ptr() for name, m in zip(TENSORS, tensors, strict=True)}
    update(threads, scratch, out=out.data_ptr(), **addresses, **fields)
    return out


@lru_cache(MOST_PLANS)
def _plan(kinds: tuple[Kind | None, ...], softplus: bool) -> tuple[int, int, dict[str, int]]:
    """Threads, numbers of scratch, and the fields of the record but for addresses."""
    tensors = by_heads(*without_numbers(kinds))  # type: ignore[arg-type]
    state, _, _, _, B, C, *_ = tensors
    batch, heads, dim, states = state.shape
    sizes = (batch, heads, dim, states, heads // B.shape[1], heads // C.shape[1], softplus)
    numbers = [0 if m is None else KINDS[m.dtype] for m in tensors]
    dims = (4, 3, 3, 3, 3, 3, 2, 3, 2)
    strides = [s for m, n in zip(tensors, dims, strict=True) for s in ((0,) * n if m is None else m.stride())]
    fields = dict(zip(f"{SIZES} {KIND_FIELDS} {STRIDES}".split(), (*sizes, *numbers, *strides), strict=True))
    items = batch * heads * -(-dim // BLOCK)
    return threads_for(items, min(dim, BLOCK) * states), 4 * (states + BLOCK), fields


@kernel(UPDATE)
def update(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), UPDATE)[0]
    N = p.states
    blocks = -(-p.dim // BLOCK)
    S = floats(p.scratch + thread(p) * p.scratch_bytes, 4 * (N + BLOCK))
    A_copy, B, C, h_copy = S[:N], S[N : 2 * N], S[2 * N : 3 * N], S[3 * N : 4 * N]
    rows = S[4 * N :]
    x, dt, y, v = rows[:BLOCK], rows[BLOCK : 2 * BLOCK], rows[2 * BLOCK : 3 * BLOCK], rows[3 * BLOCK :]
    A_in_place = p.A_kind == F32 and p.A_n == 1
    state_in_place = p.state_kind == F32 and p.state_n == 1
    for item in range(thread(p), p.batch * p.heads * blocks, thread_count(p)):
        d, row = item % blocks * BLOCK, item // blocks
        head, b = row % p.heads, row // p.heads
        w = min(BLOCK, p.dim - d)
        gather(B, p.B, b * p.B_b + head // p.heads_per_B * p.B_g, N, 1, p.B_kind, p.B_n, 1)
        gather(C, p.C, b * p.C_b + head // p.heads_per_C * p.C_g, N, 1, p.C_kind, p.C_n, 1)
        gather(x, p.x, b * p.x_b + head * p.x_h + d * p.x_d, w, 1, p.x_kind, p.x_d, 1)
        gather(dt, p.dt, b * p.dt_b + head * p.dt_h + d * p.dt_d, w, 1, p.dt_kind, p.dt_d, 1)
        if p.bias != 0:
            gather(v, p.bias, head * p.bias_h + d * p.bias_d, w, 1, p.bias_kind, p.bias_d, 1)
            for c in range(w):
                dt[c] += v[c]
        if p.softplus != 0:
            for c in range(w):
                dt[c] = softplus(dt[c])
        for c in range(w):
            y[c] = ZERO
        if p.D != 0:
            gather(v, p.D, head * p.D_h + d * p.D_d, w, 1, p.D_kind, p.D_d, 1)
            for c in range(w):
                y[c] = v[c] * x[c]
        for c in range(w):
            state_at = b * p.state_b + head * p.state_h + (d + c) * p.state_d
            h = floats(p.state + state_at * size_of(p.state_kind), N) if state_in_place else h_copy
            if not state_in_place:
                gather(h, p.state, state_at, N, 1, p.state_kind, p.state_n, 1)
            A_at = head * p.A_h + (d + c) * p.A_d
            A = floats(p.A + A_at * size_of(p.A_kind), N) if A_in_place else A_copy
            if not A_in_place:
                gather(A, p.A, A_at, N, 1, p.A_kind, p.A_n, 1)
            # The common case with a count that LLVM knows: one vector instead of a loop.
            if N == 16:
                y[c] += move_on(h, A, B, C, dt[c], dt[c] * x[c], 16, False)
            else:
                y[c] += move_on(h, A, B, C, dt[c], dt[c] * x[c], N, False)
            if not state_in_place:
                scatter(p.state, state_at, h, N, 1, p.state_kind, p.state_n, 1)
        if p.z != 0:
            gather(v, p.z, b * p.z_b + head * p.z_h + d * p.z_d, w, 1, p.z_kind, p.z_d, 1)
            for c in range(w):
                y[c] *= v[c] * sigmoid(v[c])
        store(p.out + (row * p.dim + d) * size_of(p.x_kind), y, w, p.x_kind)
