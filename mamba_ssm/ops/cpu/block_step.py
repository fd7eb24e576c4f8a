"""One token through Mamba blocks on a CPU: one call for all, whose threads share the rows of every matrix.

Bound by memory: each row of the batch reads each weight and its own states once, by the threads together, which wait
for each other between the products. A channel's states are updated where its step is computed.

Letters: B batch, M model width, D inner channels, N state, W width of the convolution, R rank of delta.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.arithmetic import (
    F32,
    I8,
    KINDS,
    fast,
    floats,
    load,
    load_more,
    normalise,
    pointer,
    sigmoid,
    size_of,
    softplus,
    store,
)
from mamba_ssm.ops.cpu.kernel import kernel, kind_of, record, thread, thread_count, use_wide_vectors, wait_for_all
from mamba_ssm.ops.cpu.linear import multiply, scale_rows
from mamba_ssm.ops.cpu.steps import move_on, slide

TENSORS = (
    *("norm", "norm_bias", "in_proj", "in_scale", "in_bias", "conv_state", "conv", "conv_bias", "x_proj", "dt_proj"),
    *("dt_bias", "A_log", "skip", "ssm_state", "out_proj", "out_scale", "out_bias"),
)
BLOCK_FIELDS = (*TENSORS, *(f"{name}_kind" for name in TENSORS), "conv_b", "ssm_b")
BLOCK = np.dtype([(name, np.int64) for name in BLOCK_FIELDS])
STREAMS = "hidden hidden_kind residual residual_kind stream stream_kind stream_bytes out"
STEP = record(f"blocks count batch model dim states taps rank rms shared {STREAMS}", floats="eps")


class Steps:
    """Blocks of one size one after the other, ready for many tokens: where everything lies is found once.

    Addresses are kept, and tensors with them: it is the caller who sees that a model still has the same ones.
    """

    def __init__(
        self, blocks: Sequence[dict[str, Tensor | None]], eps: float, is_rms_norm: bool, residual_in_fp32: bool
    ) -> None:
        """blocks: for each the tensors of `block_step`, by the names in TENSORS; in_proj and out_proj may be int8.

        in_scale (2D,) and out_scale (M,) belong to rows of int8.
        """
        self.blocks = blocks
        self.residual_in_fp32 = residual_in_fp32
        self.where = np.array([_fields(block) for block in blocks], BLOCK)
        first: dict[str, Any] = blocks[0]
        (self.dim, self.states), self.taps = first["A_log"].shape, first["conv"].shape[-1]
        self.model = first["out_proj"].shape[0]
        self.rank = first["x_proj"].shape[0] - 2 * self.states
        sizes = {"dim": self.dim, "states": self.states, "taps": self.taps, "rank": self.rank}
        self.fixed: dict[str, Any] = {
            **{"blocks": self.where.ctypes.data, "count": len(blocks), "model": self.model, **sizes},
            **{"rms": is_rms_norm, "eps": eps},
        }

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """hidden, residual (B, M): what the last block's mixer gives, and the sum that is the next residual."""
        batch, hidden = hidden.shape[0], hidden.contiguous()
        residual = None if residual is None else residual.contiguous()
        kind = residual.dtype if residual is not None else torch.float32 if self.residual_in_fp32 else hidden.dtype
        out, streams = torch.empty_like(hidden), hidden.new_empty(2, batch, self.model, dtype=kind)
        row = 4 * self.dim + self.rank + 2 * self.states
        shared = hidden.new_empty(batch, row, dtype=torch.float32)
        step(
            torch.get_num_threads(),
            batch * self.model + max(2 * self.dim, self.model, self.states, 2 * self.dim * self.taps),
            **self.fixed,
            batch=batch,
            shared=shared.data_ptr(),
            hidden=hidden.data_ptr(),
            hidden_kind=kind_of(hidden),
            residual=0 if residual is None else residual.data_ptr(),
            residual_kind=kind_of(streams),
            stream=streams.data_ptr(),
            stream_kind=kind_of(streams),
            stream_bytes=batch * self.model * streams.element_size(),
            out=out.data_ptr(),
        )
        return out, streams[(len(self.blocks) - 1) % 2]


def block_step(
    hidden: Tensor,
    residual: Tensor | None,
    conv_state: Tensor,
    ssm_state: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    eps: float = 1e-5,
    is_rms_norm: bool = True,
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shapes and results are the reference's, computed in fp32."""
    block = {
        **{"norm": norm_weight, "norm_bias": norm_bias, "in_proj": in_proj_weight, "in_bias": in_proj_bias},
        **{"conv_state": conv_state, "conv": conv_weight, "conv_bias": conv_bias, "x_proj": x_proj_weight},
        **{"dt_proj": dt_proj_weight, "dt_bias": dt_proj_bias, "A_log": A_log, "skip": D, "ssm_state": ssm_state},
        **{"out_proj": out_proj_weight, "out_bias": out_proj_bias},
    }
    return Steps([block], eps, is_rms_norm, residual_in_fp32)(hidden, residual)


def _fields(block: dict[str, Tensor | None]) -> tuple[int, ...]:
    """The values of BLOCK."""
    addresses, kinds, strides = [], [], []
    for name in TENSORS:
        tensor = block.get(name)
        if tensor is None:
            addresses.append(0)
            kinds.append(0)
            continue
        of_a_cache = name in ("conv_state", "ssm_state")
        known = tensor.dtype in KINDS or (tensor.dtype == torch.int8 and name in ("in_proj", "out_proj"))
        if not known or not (tensor[0] if of_a_cache else tensor).is_contiguous():
            raise BackendError(f"The CPU's step takes {name} contiguous, in fp32, fp16 or bf16: convert it.")
        if name == "ssm_state" and tensor.dtype != torch.float32:
            raise BackendError("The CPU's step keeps its state in fp32: convert it.")
        addresses.append(tensor.data_ptr())
        kinds.append(KINDS.get(tensor.dtype, I8))
        if of_a_cache:
            strides.append(tensor.stride(0) * tensor.element_size())
    return (*addresses, *kinds, *strides)


@fast
def block(p: Any, q: Any, hidden: Any, residual: Any, stream: Any, S: Any, shared: Any) -> None:
    """One block, q; hidden, residual and stream are addresses, of p's kinds."""
    M, D, N, R, W = p.model, p.dim, p.states, p.rank, p.taps
    me, all_threads = thread(p), thread_count(p)
    more = p.batch * M  # where the scratch behind the rows begins
    row = 4 * D + R + 2 * N
    first, last = D * me // all_threads, D * (me + 1) // all_threads  # the channels of this thread
    own = last - first

    for b in range(p.batch):
        v = S[b * M : (b + 1) * M]
        load(v, hidden + b * M * size_of(p.hidden_kind), M, p.hidden_kind)
        if residual != 0:
            load_more(v, residual + b * M * size_of(p.residual_kind), M, p.residual_kind)
        if me == 0:
            store(stream + b * M * size_of(p.stream_kind), v, M, p.stream_kind)
        normalise(v, M, p.rms, np.float32(p.eps))
        load(S[more : more + M], q.norm, M, q.norm_kind)
        for j in range(M):
            v[j] *= S[more + j]
        if q.norm_bias != 0:
            load_more(v, q.norm_bias, M, q.norm_bias_kind)

    for part in range(2):  # x, and z
        begin, end = part * D + first, part * D + last
        multiply(q.in_proj, q.in_proj_kind, M, begin, end, p.batch, S, M, shared, row)
        for b in range(p.batch):
            to = shared[b * row : (b + 1) * row]
            if q.in_scale != 0:
                scale_rows(to, q.in_scale, begin, end, q.in_scale_kind, S[more:])
            if q.in_bias != 0:
                load_more(to[begin:end], q.in_bias + begin * size_of(q.in_bias_kind), own, q.in_bias_kind)

    past, weight = S[more : more + own * W], S[more + own * W : more + 2 * own * W]
    load(weight, q.conv + first * W * size_of(q.conv_kind), own * W, q.conv_kind)
    for b in range(p.batch):
        x = shared[b * row + first : b * row + last]
        at = q.conv_state + b * q.conv_b + first * W * size_of(q.conv_state_kind)
        load(past, at, own * W, q.conv_state_kind)
        if W == 4:  # as below: the common case with a count that LLVM knows
            slide(past, weight, x, own, 4, 4)
        else:
            slide(past, weight, x, own, W, W)
        store(at, past, own * W, q.conv_state_kind)
        if q.conv_bias != 0:
            load_more(x, q.conv_bias + first * size_of(q.conv_bias_kind), own, q.conv_bias_kind)
        for c in range(own):
            x[c] *= sigmoid(x[c])
    wait_for_all(p)

    selected = R + 2 * N
    begin, end = selected * me // all_threads, selected * (me + 1) // all_threads
    multiply(q.x_proj, q.x_proj_kind, D, begin, end, p.batch, shared, row, shared[4 * D :], row)
    wait_for_all(p)

    multiply(q.dt_proj, q.dt_proj_kind, R, first, last, p.batch, shared[4 * D :], row, shared[3 * D :], row)
    for b in range(p.batch):
        x, z = shared[b * row + first :][:own], shared[b * row + D + first :][:own]
        y, dt = shared[b * row + 2 * D + first :][:own], shared[b * row + 3 * D + first :][:own]
        chosen = shared[b * row + 4 * D : b * row + 4 * D + selected]
        B, C = chosen[R : R + N], chosen[R + N :]
        if q.dt_bias != 0:
            load_more(dt, q.dt_bias + first * size_of(q.dt_bias_kind), own, q.dt_bias_kind)
        for c in range(own):
            dt[c] = softplus(dt[c])
        load(y, q.skip + first * size_of(q.skip_kind), own, q.skip_kind)
        for c in range(own):
            y[c] *= x[c]
        log_A = S[more : more + N]
        for c in range(own):
            h = floats(q.ssm_state + b * q.ssm_b + (first + c) * N * 4, N)
            at = q.A_log + (first + c) * N * size_of(q.A_log_kind)
            if q.A_log_kind == F32:
                log_A = floats(at, N)
            else:
                load(log_A, at, N, q.A_log_kind)
            v = dt[c] * x[c]
            # The common case with a count that LLVM knows: one vector instead of a loop.
            if N == 16:
                y[c] += move_on(h, log_A, B, C, dt[c], v, 16, True)
            else:
                y[c] += move_on(h, log_A, B, C, dt[c], v, N, True)
        for c in range(own):
            y[c] *= z[c] * sigmoid(z[c])
    wait_for_all(p)

    begin, end = M * me // all_threads, M * (me + 1) // all_threads
    multiply(q.out_proj, q.out_proj_kind, D, begin, end, p.batch, shared[2 * D :], row, S, M)
    for b in range(p.batch):
        out = S[b * M : (b + 1) * M]
        if q.out_scale != 0:
            scale_rows(out, q.out_scale, begin, end, q.out_scale_kind, S[more:])
        if q.out_bias != 0:
            load_more(out[begin:end], q.out_bias + begin * size_of(q.out_bias_kind), end - begin, q.out_bias_kind)
        store(p.out + (b * M + begin) * size_of(p.hidden_kind), out[begin:end], end - begin, p.hidden_kind)


@kernel(STEP)
def step(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), STEP)[0]
    blocks = carray(pointer(p.blocks), (p.count,), BLOCK)
    S = floats(p.scratch + thread(p) * p.scratch_bytes, p.scratch_bytes // 4)
    shared = floats(p.shared, p.batch * (4 * p.dim + p.rank + 2 * p.states))
    hidden, residual = p.hidden, p.residual
    for i in range(p.count):
        stream = p.stream + i % 2 * p.stream_bytes
        block(p, blocks[i], hidden, residual, stream, S, shared)
        hidden, residual = p.out, stream
        if i + 1 < p.count:
            wait_for_all(p)
