"""One token through a Mamba block on a CPU: one call, whose threads share the rows of every matrix.

Bound by memory: each weight and each state is read once, by the threads together, which wait for each other between the
products. A channel's states are updated where its step is computed.

Letters: B batch, M model width, D inner channels, N state, W width of the convolution, R rank of delta.
"""

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.arithmetic import (
    BF16,
    F32,
    FAST,
    KINDS,
    LOG2E,
    exp2,
    float_of_bfloat,
    float_of_half,
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
from mamba_ssm.ops.cpu.kernel import kernel, record, thread, thread_count, use_wide_vectors, wait_for_all

ZERO = np.float32(0)

TENSORS = (
    "hidden residual stream norm norm_bias in_proj in_bias conv_state conv conv_bias x_proj dt_proj dt_bias A_log skip "
    "ssm_state out_proj out_bias out"
)
STEP = record(
    f"batch model dim states taps rank rms conv_b ssm_b shared {TENSORS} "
    + " ".join(f"{name}_kind" for name in TENSORS.split()),
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
    given = {
        **{"hidden": hidden.contiguous(), "residual": None if residual is None else residual.contiguous()},
        **{"norm": norm_weight, "norm_bias": norm_bias, "in_proj": in_proj_weight, "in_bias": in_proj_bias},
        **{"conv_state": conv_state, "conv": conv_weight, "conv_bias": conv_bias, "x_proj": x_proj_weight},
        **{"dt_proj": dt_proj_weight, "dt_bias": dt_proj_bias, "A_log": A_log, "skip": D, "ssm_state": ssm_state},
        **{"out_proj": out_proj_weight, "out_bias": out_proj_bias},
        **{"stream": stream, "out": out},
    }
    fields: dict[str, int] = {}
    for name, tensor in given.items():
        if tensor is None:
            fields[name] = fields[f"{name}_kind"] = 0
            continue
        dense = tensor[0].is_contiguous() if name in ("conv_state", "ssm_state") else tensor.is_contiguous()
        if not dense or tensor.dtype not in KINDS:
            raise BackendError(f"The CPU's step takes {name} contiguous, in fp32, fp16 or bf16: convert it.")
        fields[name], fields[f"{name}_kind"] = tensor.data_ptr(), KINDS[tensor.dtype]
    if ssm_state.dtype != torch.float32:
        raise BackendError("The CPU's step keeps its state in fp32: convert it.")
    shared = hidden.new_empty(batch, 4 * dim + rank + 2 * states, dtype=torch.float32)
    step(
        torch.get_num_threads(),
        batch * model + 2 * states,
        **{"batch": batch, "model": model, "dim": dim, "states": states, "taps": conv_weight.shape[1], "rank": rank},
        **{"rms": is_rms_norm, "eps": eps, "shared": shared.data_ptr()},
        conv_b=conv_state.stride(0) * conv_state.element_size(),
        ssm_b=ssm_state.stride(0) * ssm_state.element_size(),
        **fields,
    )
    return out, stream


@njit(forceinline=True, fastmath=FAST)
def dot(address: Any, x: Any, count: Any, kind: Any) -> Any:
    """Of `count` numbers in memory and of x."""
    sum = ZERO
    if kind == F32:
        wide = floats(address, count)
        for j in range(count):
            sum += wide[j] * x[j]
    else:
        half = carray(pointer(address), (count,), np.int16)
        if kind == BF16:
            for j in range(count):
                sum += float_of_bfloat(half[j]) * x[j]
        else:
            for j in range(count):
                sum += float_of_half(half[j]) * x[j]
    return sum


@njit(forceinline=True, fastmath=FAST)
def multiply(weight: Any, kind: Any, inputs: Any, first: Any, last: Any, x: Any, y: Any) -> None:
    """Rows first to last of a matrix of `inputs` columns, times x, to y: four at once, as many streams of memory."""
    size = inputs * size_of(kind)
    for o in range(first, last - 3, 4):
        at = weight + o * size
        a, b, c, d = ZERO, ZERO, ZERO, ZERO
        if kind == F32:
            wide = floats(at, 4 * inputs)
            for j in range(inputs):
                a += wide[j] * x[j]
                b += wide[inputs + j] * x[j]
                c += wide[2 * inputs + j] * x[j]
                d += wide[3 * inputs + j] * x[j]
        else:
            half = carray(pointer(at), (4 * inputs,), np.int16)
            if kind == BF16:
                for j in range(inputs):
                    a += float_of_bfloat(half[j]) * x[j]
                    b += float_of_bfloat(half[inputs + j]) * x[j]
                    c += float_of_bfloat(half[2 * inputs + j]) * x[j]
                    d += float_of_bfloat(half[3 * inputs + j]) * x[j]
            else:
                for j in range(inputs):
                    a += float_of_half(half[j]) * x[j]
                    b += float_of_half(half[inputs + j]) * x[j]
                    c += float_of_half(half[2 * inputs + j]) * x[j]
                    d += float_of_half(half[3 * inputs + j]) * x[j]
        y[o], y[o + 1], y[o + 2], y[o + 3] = a, b, c, d
    for o in range(last - (last - first) % 4, last):
        y[o] = dot(weight + o * size, x, inputs, kind)


@njit(forceinline=True, fastmath=FAST)
def number(address: Any, at: Any, kind: Any) -> Any:
    """One number, or 0 where there is no tensor."""
    if address == 0:
        return ZERO
    if kind == F32:
        return floats(address, at + 1)[at]
    half = carray(pointer(address), (at + 1,), np.int16)[at]
    return float_of_bfloat(half) if kind == BF16 else float_of_half(half)


@njit(forceinline=True, fastmath=FAST)
def move_on(h: Any, log_A: Any, B: Any, C: Any, dt: Any, v: Any, count: Any) -> Any:
    """A channel's states by one step, in place, and its output."""
    y = ZERO
    for n in range(count):
        new = exp2(-LOG2E * dt * exp2(LOG2E * log_A[n])) * h[n] + v * B[n]
        h[n] = new
        y += new * C[n]
    return y


@kernel(STEP)
def step(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), STEP)[0]
    M, D, N, R, W = p.model, p.dim, p.states, p.rank, p.taps
    me, all_threads = thread(p), thread_count(p)
    S = floats(p.scratch + me * p.scratch_bytes, p.batch * M + 2 * N)
    log_A, past = S[p.batch * M : p.batch * M + N], S[p.batch * M + N : p.batch * M + 2 * N]
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
        for j in range(M):
            v[j] = v[j] * number(p.norm, j, p.norm_kind) + number(p.norm_bias, j, p.norm_bias_kind)

    for part in range(2):  # x, and z
        for b in range(p.batch):
            to = shared[b * row : (b + 1) * row]
            multiply(p.in_proj, p.in_proj_kind, M, part * D + first, part * D + last, S[b * M : (b + 1) * M], to)
            if p.in_bias != 0:
                for o in range(part * D + first, part * D + last):
                    to[o] += number(p.in_bias, o, p.in_bias_kind)

    size = size_of(p.conv_state_kind)
    for b in range(p.batch):
        x = shared[b * row + first : b * row + last]
        for c in range(own):
            at = p.conv_state + b * p.conv_b + (first + c) * W * size
            sum = number(p.conv_bias, first + c, p.conv_bias_kind)
            for k in range(W):
                value = x[c] if k == W - 1 else number(at, k + 1, p.conv_state_kind)
                sum += value * number(p.conv, (first + c) * W + k, p.conv_kind)
                past[0] = value
                store(at + k * size, past, 1, p.conv_state_kind)
            x[c] = sum
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
        for c in range(own):
            dt[c] += number(p.dt_bias, first + c, p.dt_bias_kind)
        for c in range(own):
            dt[c] = softplus(dt[c])
        for c in range(own):
            h = floats(p.ssm_state + b * p.ssm_b + (first + c) * N * 4, N)
            load(log_A, p.A_log + (first + c) * N * size_of(p.A_log_kind), N, p.A_log_kind)
            v = dt[c] * x[c]
            # The common case with a count that LLVM knows: one vector instead of a loop.
            sum = move_on(h, log_A, B, C, dt[c], v, 16) if N == 16 else move_on(h, log_A, B, C, dt[c], v, N)
            y[c] = sum + x[c] * number(p.skip, first + c, p.skip_kind)
        for c in range(own):
            y[c] *= z[c] * sigmoid(z[c])
    wait_for_all(p)

    begin, end = M * me // all_threads, M * (me + 1) // all_threads
    for b in range(p.batch):
        y, out = shared[b * row + 2 * D : b * row + 3 * D], S[b * M : (b + 1) * M]
        multiply(p.out_proj, p.out_proj_kind, D, begin, end, y, out)
        if p.out_bias != 0:
            for o in range(begin, end):
                out[o] += number(p.out_bias, o, p.out_bias_kind)
        store(p.out + (b * M + begin) * size_of(p.out_kind), out[begin:end], end - begin, p.out_kind)
