"""Causal depthwise convolution on a CPU, forward and backward. Bound by memory: a block of channels walks through time
with its last W inputs in the cache. Work is cut by rows, segments of time and blocks of channels.

Letters: B batch, D channels, L length, W width.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_ssm.ops.cpu.arithmetic import ask_for, fast, floats, load, pointer, sigmoid, size_of, store
from mamba_ssm.ops.cpu.causal_conv1d_update import causal_conv1d_update
from mamba_ssm.ops.cpu.kernel import (
    addresses,
    kernel,
    neighbours_last,
    record,
    row_fields,
    rows,
    thread,
    thread_count,
    threads_for,
    use_wide_vectors,
)
from mamba_ssm.ops.layout import channel_last, last_inputs

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]

BLOCK = 512  # channels
SEGMENT = 128  # steps
ZERO, ONE = np.float32(0), np.float32(1)

SHAPE = "batch dim length taps silu seq weight bias initial "
FORWARD = record(SHAPE + row_fields("x out"))
BACKWARD = record(SHAPE + "d_weight d_bias d_initial " + row_fields("x dout dx"))


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Shapes and results are the reference's, computed in fp32."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is None, 'silu' or 'swish', not {activation!r}")
    seq = None if seq_idx is None else seq_idx.to(torch.int32).contiguous()
    out = _Convolution.apply(
        neighbours_last(x.transpose(1, 2)), weight, bias, initial_states, seq, activation is not None
    )
    out = out.transpose(1, 2)
    if not channel_last(x):
        out = out.contiguous()
    if not return_final_states:
        return out
    final = last_inputs(x, initial_states, weight.shape[1] - 1, seq_idx)
    return out, final if final_states_out is None else final_states_out.copy_(final)


class _Convolution(torch.autograd.Function):
    """x (B, L, D) -> (B, L, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial: Tensor | None,
        seq: Tensor | None,
        silu: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, initial, seq)
        ctx.silu = silu
        given = _Given(x, weight, bias, initial, seq, silu)
        out = x.new_empty(x.shape)
        convolve(given.threads, (given.taps + 3) * BLOCK, **given.fields, **rows("out", out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, initial, seq = ctx.saved_tensors
        given = _Given(x, weight, bias, initial, seq, ctx.silu)
        dout = neighbours_last(dout)
        dx = x.new_empty(x.shape)
        d_weight = given.weight.new_zeros(given.threads, *given.weight.shape)
        d_bias = given.bias.new_zeros(given.threads, x.shape[2])
        d_initial = None if given.initial is None else torch.zeros_like(given.initial)
        convolve_backward(
            given.threads,
            (4 * given.taps + 6) * BLOCK,
            **given.fields,
            **addresses(d_weight=d_weight, d_bias=d_bias, d_initial=d_initial),
            **rows("dout", dout),
            **rows("dx", dx),
        )
        return (
            dx,
            d_weight.sum(0).t().to(weight.dtype),
            None if bias is None else d_bias.sum(0).to(bias.dtype),
            None if initial is None or d_initial is None else d_initial.transpose(1, 2).to(initial.dtype),
            None,
            None,
        )


class _Given:
    """The arguments that both kernels share: weight (W, D), bias (D,) and initial (B, W-1, D) as contiguous fp32."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, seq: Tensor | None, silu: bool
    ) -> None:
        batch, length, dim = x.shape
        self.taps = weight.shape[1]
        self.weight = weight.float().t().contiguous()
        self.bias = self.weight.new_zeros(dim) if bias is None else bias.float().contiguous()
        self.initial = None if initial is None else initial.float().transpose(1, 2).contiguous()
        items = batch * -(-length // SEGMENT) * -(-dim // BLOCK)
        self.threads = threads_for(items, SEGMENT * BLOCK)
        self.fields = {
            **{"batch": batch, "dim": dim, "length": length, "taps": self.taps, "silu": silu},
            **addresses(seq=seq, weight=self.weight, bias=self.bias, initial=self.initial),
            **rows("x", x),
        }


@fast
def read_input(p: Any, to: Any, b: Any, t: Any, d: Any, w: Any) -> None:
    """w channels of step t: before the first step those of the state, and zero after the last."""
    if 0 <= t < p.length:
        load(to, p.x + b * p.x_b + t * p.x_t + d * size_of(p.x_kind), w, p.x_kind)
    elif t < 0 and p.initial != 0:
        load(to, p.initial + ((b * (p.taps - 1) + t + p.taps - 1) * p.dim + d) * 4, w, 0)
    else:
        for j in range(w):
            to[j] = ZERO


@fast
def weighted_sum(p: Any, S: Any, seq: Any, bias: Any, t: Any, d: Any, w: Any, y: Any) -> None:
    """The convolution at step t, of the last W inputs at the start of S, each at its step modulo W."""
    W = p.taps
    for j in range(w):
        y[j] = bias[j]
    for k in range(W):
        if p.seq != 0 and seq[max(0, t - k)] != seq[t]:
            continue
        x = S[(t - k + W) % W * w : ((t - k + W) % W + 1) * w]
        weight = floats(p.weight + ((W - 1 - k) * p.dim + d) * 4, w)
        for j in range(w):
            y[j] += weight[j] * x[j]


@kernel(FORWARD)
def convolve(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), FORWARD)[0]
    W = p.taps
    blocks, segments = -(-p.dim // BLOCK), -(-p.length // SEGMENT)
    scratch = p.scratch + thread(p) * p.scratch_bytes
    for item in range(thread(p), p.batch * segments * blocks, thread_count(p)):
        d, rest = item % blocks * BLOCK, item // blocks
        segment, b = rest % segments, rest // segments
        w = min(BLOCK, p.dim - d)
        S = floats(scratch, (W + 3) * w)
        y, bias = S[W * w : (W + 1) * w], S[(W + 1) * w : (W + 2) * w]
        load(bias, p.bias + d * 4, w, 0)
        seq = carray(pointer(p.seq + b * p.length * 4), (p.length,), np.int32)
        begin, end = segment * SEGMENT, min(p.length, (segment + 1) * SEGMENT)
        for t in range(begin - W + 1, end):
            new = S[(t + W) % W * w : ((t + W) % W + 1) * w]
            ask_for(p.x + b * p.x_b + (t + 4) * p.x_t + d * size_of(p.x_kind), w * size_of(p.x_kind))
            read_input(p, new, b, t, d, w)
            if t < begin:
                continue
            weighted_sum(p, S, seq, bias, t, d, w, y)
            if p.silu != 0:
                for j in range(w):
                    y[j] *= sigmoid(y[j])
            if p.seq != 0 and seq[t] < 0:
                for j in range(w):
                    y[j] = ZERO
            store(p.out + b * p.out_b + t * p.out_t + d * size_of(p.out_kind), y, w, p.out_kind)


@kernel(BACKWARD)
def convolve_backward(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), BACKWARD)[0]
    W = p.taps
    blocks, segments = -(-p.dim // BLOCK), -(-p.length // SEGMENT)
    scratch = p.scratch + thread(p) * p.scratch_bytes
    mine = thread(p) * p.dim * 4  # each thread adds to sums of its own
    for item in range(thread(p), p.batch * segments * blocks, thread_count(p)):
        d, rest = item % blocks * BLOCK, item // blocks
        segment, b = rest % segments, rest // segments
        w = min(BLOCK, p.dim - d)
        S = floats(scratch, (4 * W + 6) * w)
        # The last W inputs, the gradients of the last W sums, and the sums of both of the weights' gradients.
        gs, bias_at = W * w, 2 * W * w
        bias, dx = S[bias_at : bias_at + w], S[bias_at + w : bias_at + 2 * w]
        load(bias, p.bias + d * 4, w, 0)
        d_bias = floats(p.d_bias + mine + d * 4, w)
        seq = carray(pointer(p.seq + b * p.length * 4), (p.length,), np.int32)
        begin, end = segment * SEGMENT, min(p.length, (segment + 1) * SEGMENT)
        for t in range(begin - W + 1, end + W - 1):
            new = S[(t + W) % W * w : ((t + W) % W + 1) * w]
            g = S[gs + (t + W) % W * w : gs + ((t + W) % W + 1) * w]
            inside = t < p.length and not (p.seq != 0 and t >= 0 and seq[max(0, t)] < 0)
            read_input(p, new, b, t, d, w)
            if t < begin:
                continue
            if inside:
                load(g, p.dout + b * p.dout_b + t * p.dout_t + d * size_of(p.dout_kind), w, p.dout_kind)
                if p.silu != 0:
                    weighted_sum(p, S, seq, bias, t, d, w, dx)
                    for j in range(w):
                        s = sigmoid(dx[j])
                        g[j] *= s * (ONE + dx[j] * (ONE - s))
                if t < end:
                    for j in range(w):
                        d_bias[j] += g[j]
                    for k in range(W):
                        if p.seq != 0 and seq[max(0, t - k)] != seq[t]:
                            continue
                        x = S[(t - k + W) % W * w : ((t - k + W) % W + 1) * w]
                        d_weight = floats(p.d_weight + W * mine + ((W - 1 - k) * p.dim + d) * 4, w)
                        for j in range(w):
                            d_weight[j] += g[j] * x[j]
                        if k > t and p.d_initial != 0:
                            weight = floats(p.weight + ((W - 1 - k) * p.dim + d) * 4, w)
                            d_initial = floats(p.d_initial + ((b * (W - 1) + t - k + W - 1) * p.dim + d) * 4, w)
                            for j in range(w):
                                d_initial[j] += g[j] * weight[j]
            else:
                for j in range(w):
                    g[j] = ZERO
            s = t - W + 1  # its gradient is complete
            if s >= begin:
                for j in range(w):
                    dx[j] = ZERO
                for k in range(W):
                    if s + k >= p.length or (p.seq != 0 and seq[s + k] != seq[s]):
                        continue
                    later = S[gs + (s + k) % W * w : gs + ((s + k) % W + 1) * w]
                    weight = floats(p.weight + ((W - 1 - k) * p.dim + d) * 4, w)
                    for j in range(w):
                        dx[j] += weight[j] * later[j]
                store(p.dx + b * p.dx_b + s * p.dx_t + d * size_of(p.dx_kind), dx, w, p.dx_kind)
