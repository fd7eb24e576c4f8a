"""Layer norm and RMS norm on a CPU with the residual added first, in one pass over memory each way.

Letters: R rows, D channels.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_ssm.ops.cpu.arithmetic import floats, load, load_more, normalise, store
from mamba_ssm.ops.cpu.kernel import (
    addresses,
    kernel,
    record,
    row_fields,
    rows,
    thread,
    thread_count,
    threads_for,
    use_wide_vectors,
)

ROWS = 16  # that a thread takes at once

SHAPE = "count dim rms weight "
FORWARD = record(SHAPE + "bias " + row_fields("x residual y stream"), floats="eps")
BACKWARD = record(SHAPE + "d_weight d_bias " + row_fields("stream dy d_stream dx d_residual"), floats="eps")


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Shapes and results are the reference's; statistics in fp32."""
    y, stream = _Norm.apply(x, weight, bias, residual, eps, residual_in_fp32, is_rms_norm)
    return (y, stream) if prenorm else y


def _flat(x: Tensor) -> Tensor:
    """(..., D) to (1, R, D)."""
    return x.reshape(1, -1, x.shape[-1]).contiguous()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        residual_in_fp32: bool,
        rms: bool,
    ) -> tuple[Tensor, Tensor]:
        flat, added = _flat(x), None if residual is None else _flat(residual)
        y = flat.new_empty(flat.shape)
        dtype = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
        same = residual is None and dtype == x.dtype
        stream = None if same else flat.new_empty(flat.shape, dtype=dtype)
        scale, shift = weight.float().contiguous(), None if bias is None else bias.float().contiguous()
        norm_forward(
            threads_for(flat.shape[1], flat.shape[2]),
            flat.shape[2],
            **{"count": flat.shape[1], "dim": flat.shape[2], "rms": rms, "eps": eps},
            **addresses(weight=scale, bias=shift),
            **rows("x", flat),
            **rows("residual", added),
            **rows("y", y),
            **rows("stream", stream),
        )
        kept = flat if stream is None else stream
        ctx.save_for_backward(kept, weight, bias)
        ctx.eps, ctx.rms = eps, rms
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        return y.view(x.shape), x.view(x.shape) if stream is None else stream.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_stream: Tensor) -> tuple[Tensor | None, ...]:
        stream, weight, bias = ctx.saved_tensors
        dtype, residual_dtype = ctx.dtypes
        shape = dy.shape
        dy, d_stream = _flat(dy), _flat(d_stream)
        _, count, dim = stream.shape
        dx = stream.new_empty(stream.shape, dtype=dtype)
        apart = residual_dtype is not None and residual_dtype != dtype
        d_residual = stream.new_empty(stream.shape, dtype=residual_dtype) if apart else None
        scale = weight.float().contiguous()
        threads = threads_for(count, dim)
        d_weight, d_bias = (scale.new_zeros(threads, dim) for _ in range(2))
        norm_backward(
            threads,
            3 * dim,
            **{"count": count, "dim": dim, "rms": ctx.rms, "eps": ctx.eps},
            **addresses(weight=scale, d_weight=d_weight, d_bias=d_bias),
            **rows("stream", stream),
            **rows("dy", dy),
            **rows("d_stream", d_stream),
            **rows("dx", dx),
            **rows("d_residual", d_residual),
        )
        dx = dx.view(shape)
        return (
            dx,
            d_weight.sum(0).to(weight.dtype),
            None if bias is None else d_bias.sum(0).to(bias.dtype),
            None if residual_dtype is None else dx if d_residual is None else d_residual.view(shape),
            None,
            None,
            None,
        )


@kernel(FORWARD)
def norm_forward(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), FORWARD)[0]
    D = p.dim
    v = floats(p.scratch + thread(p) * p.scratch_bytes, D)
    weight, bias = floats(p.weight, D), floats(p.bias, D)
    for first in range(thread(p) * ROWS, p.count, thread_count(p) * ROWS):
        for r in range(first, min(first + ROWS, p.count)):
            load(v, p.x + r * p.x_t, D, p.x_kind)
            if p.residual != 0:
                load_more(v, p.residual + r * p.residual_t, D, p.residual_kind)
            if p.stream != 0:
                store(p.stream + r * p.stream_t, v, D, p.stream_kind)
            normalise(v, D, p.rms, np.float32(p.eps))
            if p.bias != 0:
                for j in range(D):
                    v[j] = v[j] * weight[j] + bias[j]
            else:
                for j in range(D):
                    v[j] *= weight[j]
            store(p.y + r * p.y_t, v, D, p.y_kind)


@kernel(BACKWARD)
def norm_backward(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), BACKWARD)[0]
    D = p.dim
    S = floats(p.scratch + thread(p) * p.scratch_bytes, 3 * D)
    v, g, more = S[0:D], S[D : 2 * D], S[2 * D : 3 * D]
    weight = floats(p.weight, D)
    d_weight, d_bias = floats(p.d_weight + thread(p) * D * 4, D), floats(p.d_bias + thread(p) * D * 4, D)
    for first in range(thread(p) * ROWS, p.count, thread_count(p) * ROWS):
        for r in range(first, min(first + ROWS, p.count)):
            load(v, p.stream + r * p.stream_t, D, p.stream_kind)
            load(g, p.dy + r * p.dy_t, D, p.dy_kind)
            load(more, p.d_stream + r * p.d_stream_t, D, p.d_stream_kind)
            scale = normalise(v, D, p.rms, np.float32(p.eps))
            along, mean = np.float32(0), np.float32(0)
            for j in range(D):
                d_weight[j] += g[j] * v[j]
                d_bias[j] += g[j]
                g[j] *= weight[j]
                along += g[j] * v[j]
                mean += g[j]
            along, mean = along / np.float32(D), np.float32(0) if p.rms != 0 else mean / np.float32(D)
            for j in range(D):
                more[j] += scale * (g[j] - mean - v[j] * along)
            store(p.dx + r * p.dx_t, more, D, p.dx_kind)
            if p.d_residual != 0:
                store(p.d_residual + r * p.d_residual_t, more, D, p.d_residual_kind)
