"""One token through a Mamba block on a CPU: one call, whose threads share the rows of every matrix.

Bound by memory: each row of the batch reads each weight and its own states once, by the threads together, which wait
for each other between the products. A channel's states are updated where its step is computed.

Letters: B batch, M model width, D inner channels, N state, W width of the convolution, R rank of delta.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.arithmetic import (
    KINDS,
    floats,
    load,
    load_more,
    normalise,
    sigmoid,
    size_of,
    softplus,
    store,
)
from mamba_ssm.ops.cpu.kernel import kernel, record, thread, thread_count, use_wide_vectors, wait_for_all
from mamba_ssm.ops.cpu.linear import multiply
from mamba_ssm.ops.cpu.steps import move_on, slide

TENSORS = (
    *("hidden", "residual", "stream", "norm", "norm_bias", "in_proj", "in_bias", "conv_state", "conv", "conv_bias"),
    *("x_proj", "dt_proj", "dt_bias", "A_log", "skip", "ssm_state", "out_proj", "out_bias", "out"),
)
KIND_FIELDS = [f"{name}_kind" for name in TENSORS]
STEP = record(
    f"batch model dim states taps rank rms conv_b ssm_b shared {' '.join(TENSORS)} {' '.join(KIND_FIELDS)}",
    floats="eps",
)


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
    batch, model = hidden.shape
    dim, states = A_log.shape
    rank = x_proj_weight.shape[0] - 2 * states
    stream_dtype = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else hidden.dtype
    out, stream = hidden.new_empty(batch, model), hidden.new_empty(batch, model, dtype=stream_dtype)
    hidden, residual = hidden.contiguous(), None if residual is None else residual.contiguous()
    tensors = (
        *(hidden, residual, stream, norm_weight, norm_bias, in_proj_weight, in_proj_bias, conv_state, conv_weight),
        *(conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias, A_log, D, ssm_state, out_proj_weight, out_proj_bias),
        out,
    )
    fields: dict[str, int] = {}
    for name, kind, tensor in zip(TENSORS, KIND_FIELDS, tensors, strict=True):
        if tensor is None:
            fields[name] = fields[kind] = 0
            continue
        dense = tensor[0].is_contiguous() if tensor is conv_state or tensor is ssm_state else tensor.is_contiguous()
        if not dense or tensor.dtype not in KINDS:
            raise BackendError(f"The CPU's step takes {name} contiguous, in fp32, fp16 or bf16: convert it.")
        fields[name], fields[kind] = tensor.data_ptr(), KINDS[tensor.dtype]
    if ssm_state.dtype != torch.float32:
        raise BackendError("The CPU's step keeps its state in fp32: convert it.")
    shared = hidden.new_empty(batch, 4 * dim + rank + 2 * states, dtype=torch.float32)
    step(
        torch.get_num_threads(),
        batch * model + max(model, states, 2 * conv_weight.numel()),
        **{"batch": batch, "model": model, "dim": dim, "states": states, "taps": conv_weight.shape[1], "rank": rank},
        **{"rms": is_rms_norm, "eps": eps, "shared": shared.data_ptr()},
        conv_b=conv_state.stride(0) * conv_state.element_size(),
        ssm_b=ssm_state.stride(0) * ssm_state.element_size(),
        **fields,
    )
    return out, stream


@kernel(STEP)
def step(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), STEP)[0]
    M, D, N, R, W = p.model, p.dim, p.states, p.rank, p.taps
    me, all_threads = thread(p), thread_count(p)
    more = p.batch * M  # where the scratch behind the rows begins
    S = floats(p.scratch + me * p.scratch_bytes, p.scratch_bytes // 4)
    row = 4 * D + R + 2 * N
    shared = floats(p.shared, p.batch * row)
    first, last = D * me // all_threads, D * (me + 1) // all_threads  # the channels of this thread
    own = last - first

    for b in range(p.batch):
        v = S[b * M : (b + 1) * M]
        load(v, p.hidden + b * M * size_of(p.hidden_kind), M, p.hidden_kind)
        if p.residual != 0:
            load_more(v, p.residual + b * M * size_of(p.residual_kind), M, p.residual_kind)
        if me == 0:
            store(p.stream + b * M * size_of(p.stream_kind), v, M, p.stream_kind)
        normalise(v, M, p.rms, np.float32(p.eps))
        load(S[more : more + M], p.norm, M, p.norm_kind)
        for j in range(M):
            v[j] *= S[more + j]
        if p.norm_bias != 0:
            load_more(v, p.norm_bias, M, p.norm_bias_kind)

    for part in range(2):  # x, and z
        for b in range(p.batch):
            to = shared[b * row : (b + 1) * row]
            multiply(p.in_proj, p.in_proj_kind, M, part * D + first, part * D + last, S[b * M : (b + 1) * M], to)
            if p.in_bias != 0:
                own_rows = to[part * D + first : part * D + last]
                load_more(own_rows, p.in_bias + (part * D + first) * size_of(p.in_bias_kind), own, p.in_bias_kind)

    past, weight = S[more : more + own * W], S[more + own * W : more + 2 * own * W]
    load(weight, p.conv + first * W * size_of(p.conv_kind), own * W, p.conv_kind)
    for b in range(p.batch):
        x = shared[b * row + first : b * row + last]
        at = p.conv_state + b * p.conv_b + first * W * size_of(p.conv_state_kind)
        load(past, at, own * W, p.conv_state_kind)
        if W == 4:  # as below: the common case with a count that LLVM knows
            slide(past, weight, x, own, 4, 4)
        else:
            slide(past, weight, x, own, W, W)
        store(at, past, own * W, p.conv_state_kind)
        if p.conv_bias != 0:
            load_more(x, p.conv_bias + first * size_of(p.conv_bias_kind), own, p.conv_bias_kind)
        for c in range(own):
            x[c] *= sigmoid(x[c])
    wait_for_all(p)

    selected = R + 2 * N
    for b in range(p.batch):
        x = shared[b * row : b * row + D]
        to = shared[b * row + 4 * D : (b + 1) * row]
        multiply(p.x_proj, p.x_proj_kind, D, selected * me // all_threads, selected * (me + 1) // all_threads, x, to)
    wait_for_all(p)

    for b in range(p.batch):
        x, z = shared[b * row + first :][:own], shared[b * row + D + first :][:own]
        y, dt = shared[b * row + 2 * D + first :][:own], shared[b * row + 3 * D + first :][:own]
        chosen = shared[b * row + 4 * D : b * row + 4 * D + selected]
        B, C = chosen[R : R + N], chosen[R + N :]
        multiply(p.dt_proj, p.dt_proj_kind, R, first, last, chosen, shared[b * row + 3 * D : b * row + 4 * D])
        if p.dt_bias != 0:
            load_more(dt, p.dt_bias + first * size_of(p.dt_bias_kind), own, p.dt_bias_kind)
        for c in range(own):
            dt[c] = softplus(dt[c])
        load(y, p.skip + first * size_of(p.skip_kind), own, p.skip_kind)
        for c in range(own):
            y[c] *= x[c]
        log_A = S[more : more + N]
        for c in range(own):
            h = floats(p.ssm_state + b * p.ssm_b + (first + c) * N * 4, N)
            load(log_A, p.A_log + (first + c) * N * size_of(p.A_log_kind), N, p.A_log_kind)
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
    for b in range(p.batch):
        y, out = shared[b * row + 2 * D : b * row + 3 * D], S[b * M : (b + 1) * M]
        multiply(p.out_proj, p.out_proj_kind, D, begin, end, y, out)
        if p.out_bias != 0:
            load_more(out[begin:end], p.out_bias + begin * size_of(p.out_bias_kind), end - begin, p.out_bias_kind)
        store(p.out + (b * M + begin) * size_of(p.out_kind), out[begin:end], end - begin, p.out_kind)
