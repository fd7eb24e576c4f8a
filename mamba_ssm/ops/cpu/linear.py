"""A matrix times a vector, or a few, on a CPU. Bound by memory: each weight is read once for a vector.

Letters: B rows, I inputs, O outputs.
"""

from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from mamba_ssm.ops.cpu.arithmetic import (
    BF16,
    F32,
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
LINEAR = record("batch inputs outputs " + row_fields("x weight y"))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, I), weight (O, I) -> x weight^T (B, O) in x's dtype, summed in fp32; without gradients."""
    x, weight = x.detach().contiguous().unsqueeze(0), weight.detach().contiguous().unsqueeze(0)
    _, batch, inputs = x.shape
    outputs = weight.shape[1]
    y = x.new_empty(1, batch, outputs)
    products(
        threads_for(outputs, inputs),
        batch * inputs + outputs,
        **{"batch": batch, "inputs": inputs, "outputs": outputs},
        **rows("x", x),
        **rows("weight", weight),
        **rows("y", y),
    )
    return y[0]


@fast
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


@fast
def multiply(weight: Any, kind: Any, inputs: Any, first: Any, last: Any, x: Any, y: Any) -> None:
    """Rows first to last of a matrix of `inputs` columns, times x, to y: four at once, as many streams of memory."""
    size = inputs * size_of(kind)
    quarter = (last - first) // 4
    for i in range(quarter):
        at = weight + (first + i) * size
        for ahead in range(at + AHEAD, at + AHEAD + size, LINE):
            prefetch(ahead)
            prefetch(ahead + quarter * size)
            prefetch(ahead + 2 * quarter * size)
            prefetch(ahead + 3 * quarter * size)
        a, b, c, d = ZERO, ZERO, ZERO, ZERO
        if kind == F32:
            w0, w1 = floats(at, inputs), floats(at + quarter * size, inputs)
            w2, w3 = floats(at + 2 * quarter * size, inputs), floats(at + 3 * quarter * size, inputs)
            for j in range(inputs):
                a += w0[j] * x[j]
                b += w1[j] * x[j]
                c += w2[j] * x[j]
                d += w3[j] * x[j]
        else:
            h0, h1 = carray(pointer(at), (inputs,), np.int16), carray(pointer(at + quarter * size), (inputs,), np.int16)
            h2 = carray(pointer(at + 2 * quarter * size), (inputs,), np.int16)
            h3 = carray(pointer(at + 3 * quarter * size), (inputs,), np.int16)
            if kind == BF16:
                for j in range(inputs):
                    a += float_of_bfloat(h0[j]) * x[j]
                    b += float_of_bfloat(h1[j]) * x[j]
                    c += float_of_bfloat(h2[j]) * x[j]
                    d += float_of_bfloat(h3[j]) * x[j]
            else:
                for j in range(inputs):
                    a += float_of_half(h0[j]) * x[j]
                    b += float_of_half(h1[j]) * x[j]
                    c += float_of_half(h2[j]) * x[j]
                    d += float_of_half(h3[j]) * x[j]
        o = first + i
        y[o], y[o + quarter], y[o + 2 * quarter], y[o + 3 * quarter] = a, b, c, d
    for o in range(first + 4 * quarter, last):
        y[o] = dot(weight + o * size, x, inputs, kind)


@kernel(LINEAR)
def products(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), LINEAR)[0]
    me, all_threads = thread(p), thread_count(p)
    S = floats(p.scratch + me * p.scratch_bytes, p.batch * p.inputs + p.outputs)
    y = S[p.batch * p.inputs :]
    first, last = p.outputs * me // all_threads, p.outputs * (me + 1) // all_threads
    for b in range(p.batch):
        x = S[b * p.inputs : (b + 1) * p.inputs]
        load(x, p.x + b * p.x_t, p.inputs, p.x_kind)
        multiply(p.weight, p.weight_kind, p.inputs, first, last, x, y)
        store(p.y + b * p.y_t + first * size_of(p.y_kind), y[first:last], last - first, p.y_kind)
