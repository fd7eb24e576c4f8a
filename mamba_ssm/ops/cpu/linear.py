"""A matrix times a vector, or a few, on a CPU. Bound by memory for one vector: each weight is read once for all.

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
        batch * (inputs + outputs) + outputs,
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
def eight_sums(address: Any, apart: Any, x: Any, x_row: Any, count: Any, dtype: Any, value: Any) -> Any:
    """Two x, so many numbers apart, times each of four rows in memory, so many bytes apart: as many streams."""
    w0, w1 = carray(pointer(address), (count,), dtype), carray(pointer(address + apart), (count,), dtype)
    w2, w3 = (
        carray(pointer(address + 2 * apart), (count,), dtype),
        carray(pointer(address + 3 * apart), (count,), dtype),
    )
    u, v = x[:count], x[x_row : x_row + count]
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    e, f, g, h = ZERO, ZERO, ZERO, ZERO
    for j in range(count):
        k0, k1, k2, k3 = value(w0[j]), value(w1[j]), value(w2[j]), value(w3[j])
        a += k0 * u[j]
        b += k1 * u[j]
        c += k2 * u[j]
        d += k3 * u[j]
        e += k0 * v[j]
        f += k1 * v[j]
        g += k2 * v[j]
        h += k3 * v[j]
    return a, b, c, d, e, f, g, h


@fast
def eight_products(address: Any, apart: Any, x: Any, x_row: Any, count: Any, kind: Any) -> Any:
    if kind == F32:
        return eight_sums(address, apart, x, x_row, count, np.float32, np.float32)
    if kind == BF16:
        return eight_sums(address, apart, x, x_row, count, np.int16, float_of_bfloat)
    if kind == F16:
        return eight_sums(address, apart, x, x_row, count, np.int16, float_of_half)
    return eight_sums(address, apart, x, x_row, count, np.int8, np.float32)


@fast
def multiply(
    weight: Any, kind: Any, inputs: Any, first: Any, last: Any, batch: Any, x: Any, x_row: Any, y: Any, y_row: Any
) -> None:
    """Rows first to last of a matrix of `inputs` columns, times each of a batch of x, to y, both so many numbers apart.

    Four rows of the matrix at once, as many streams of memory, which all of the batch share. From two on, a row of y is
    the same to the last bit however large the batch is: so a text does not depend on who else is decoded with it.
    """
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
        if batch == 1:
            y[o], y[o + quarter], y[o + 2 * quarter], y[o + 3 * quarter] = four_products(at, apart, x, inputs, kind)
            continue
        for b in range(0, batch, 2):
            # The last one of an odd batch is taken twice: the loop for one may add in another order.
            other = min(b + 1, batch - 1)
            to, more = y[b * y_row :], y[other * y_row :]
            sums = eight_products(at, apart, x[b * x_row :], (other - b) * x_row, inputs, kind)
            to[o], to[o + quarter], to[o + 2 * quarter], to[o + 3 * quarter] = sums[:4]
            more[o], more[o + quarter], more[o + 2 * quarter], more[o + 3 * quarter] = sums[4:]
    for o in range(first + 4 * quarter, last):  # three at most
        if batch == 1:
            y[o] = four_products(weight + o * size, 0, x, inputs, kind)[0]
            continue
        for b in range(batch):
            y[b * y_row + o] = eight_products(weight + o * size, 0, x[b * x_row :], 0, inputs, kind)[0]


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
    I, O = p.inputs, p.outputs
    S = floats(p.scratch + me * p.scratch_bytes, p.batch * (I + O) + O)
    y = S[p.batch * I :]
    first, last = O * me // all_threads, O * (me + 1) // all_threads
    for b in range(p.batch):
        load(S[b * I : (b + 1) * I], p.x + b * p.x_t, I, p.x_kind)
    multiply(p.weight, p.weight_kind, I, first, last, p.batch, S, I, y, O)
    for b in range(p.batch):
        row = y[b * O : (b + 1) * O]
        if p.scale != 0:
            scale_rows(row, p.scale, first, last, p.scale_kind, y[p.batch * O :])
        store(p.y + b * p.y_t + first * size_of(p.y_kind), row[first:last], last - first, p.y_kind)
