"""A matrix times a vector, or a few, on a CPU. Bound by memory: each weight is read once for a vector.

Letters: B rows, I inputs, O outputs.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from mamba_ssm.ops.cpu.arithmetic import (
    BF16,
    F16,
    F32,
    I8,
    LINE,
    fast,
    float_of_bfloat,
    float_of_half,
    floats,
    load,
    pointer,
    prefetch,
    size_of,
    store,
)
from mamba_ssm.ops.cpu.kernel import (
    kernel,
    kind_of,
    record,
    row_fields,
    rows,
    thread,
    thread_count,
    threads_for,
    use_wide_vectors,
)

AHEAD = 2048  # bytes of a matrix between what is used and what is asked for
ZERO = np.float32(0)
LINEAR = record("batch inputs outputs weight weight_kind scale scale_kind " + row_fields("x y"))


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """x (B, I), weight (O, I), int8 with scale (O,) -> x weight^T (B, O) in x's dtype, summed in fp32; no gradients."""
    x, weight = x.detach().contiguous().unsqueeze(0), weight.contiguous()
    _, batch, inputs = x.shape
    outputs = weight.shape[0]
    y = x.new_empty(1, batch, outputs)
    products(
        threads_for(outputs, inputs),
        batch * inputs + 2 * outputs,
        **{"batch": batch, "inputs": inputs, "outputs": outputs},
        **{"weight": weight.data_ptr(), "weight_kind": I8 if weight.dtype == torch.int8 else kind_of(weight)},
        scale=0 if scale is None else scale.data_ptr(),
        scale_kind=0 if scale is None else kind_of(scale),
        **rows("x", x),
        **rows("y", y),
    )
    return y[0]


@fast
def four_sums(address: Any, apart: Any, x: Any, count: Any, dtype: Any, value: Any) -> Any:
    """x times each of four rows in memory, so many bytes apart: as many streams."""
    w0, w1 = carray(pointer(address), (count,), dtype), carray(pointer(address + apart), (count,), dtype)
    w2, w3 = (
        carray(pointer(address + 2 * apart), (count,), dtype),
        carray(pointer(address + 3 * apart), (count,), dtype),
    )
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    for j in range(count):
        a += value(w0[j]) * x[j]
        b += value(w1[j]) * x[j]
        c += value(w2[j]) * x[j]
        d += value(w3[j]) * x[j]
    return a, b, c, d


@fast
def four_products(address: Any, apart: Any, x: Any, count: Any, kind: Any) -> Any:
    if kind == F32:
        return four_sums(address, apart, x, count, np.float32, np.float32)
    if kind == BF16:
        return four_sums(address, apart, x, count, np.int16, float_of_bfloat)
    if kind == F16:
        return four_sums(address, apart, x, count, np.int16, float_of_half)
    return four_sums(address, apart, x, count, np.int8, np.float32)


@fast
def multiply(weight: Any, kind: Any, inputs: Any, first: Any, last: Any, x: Any, y: Any) -> None:
    """Rows first to last of a matrix of `inputs` columns, times x, to y: four at once, as many streams of memory."""
    size = inputs * size_of(kind)
    quarter = (last - first) // 4
    apart = quarter * size
    for o in range(first, first + quarter):
        at = weight + o * size
        for ahead in range(at + AHEAD, at + AHEAD + size, LINE):
            prefetch(ahead)
            prefetch(ahead + apart)
            prefetch(ahead + 2 * apart)
            prefetch(ahead + 3 * apart)
        y[o], y[o + quarter], y[o + 2 * quarter], y[o + 3 * quarter] = four_products(at, apart, x, inputs, kind)
    for o in range(first + 4 * quarter, last):  # three at most
        y[o] = four_products(weight + o * size, 0, x, inputs, kind)[0]


@fast
def scale_rows(y: Any, scale: Any, first: Any, last: Any, kind: Any, scratch: Any) -> None:
    """Rows first to last of a product with int8 weights, times what their weights were divided by."""
    load(scratch[: last - first], scale + first * size_of(kind), last - first, kind)
    for o in range(first, last):
        y[o] *= scratch[o - first]


@kernel(LINEAR)
def products(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), LINEAR)[0]
    me, all_threads = thread(p), thread_count(p)
    S = floats(p.scratch + me * p.scratch_bytes, p.batch * p.inputs + 2 * p.outputs)
    y = S[p.batch * p.inputs :][: p.outputs]
    first, last = p.outputs * me // all_threads, p.outputs * (me + 1) // all_threads
    for b in range(p.batch):
        x = S[b * p.inputs : (b + 1) * p.inputs]
        load(x, p.x + b * p.x_t, p.inputs, p.x_kind)
        multiply(p.weight, p.weight_kind, p.inputs, first, last, x, y)
        if p.scale != 0:
            scale_rows(y, p.scale, first, last, p.scale_kind, S[p.batch * p.inputs + p.outputs :])
        store(p.y + b * p.y_t + first * size_of(p.y_kind), y[first:last], last - first, p.y_kind)
