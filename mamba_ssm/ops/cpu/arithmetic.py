"""Numbers inside kernels: fp32 functions that LLVM turns into vector instructions, and rows of any dtype as fp32.

LLVM has no vector exp or log, and a call to a scalar one keeps a whole loop from being vectorised; hence the
polynomials, fitted for the least relative error. NaN stays NaN, and what overflows is infinite.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

F32, BF16, F16, I8 = 0, 1, 2, 3
LINE = 64  # bytes of a cache line
KINDS = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}

# Fused multiply-adds; and, in kernels, sums in the order that suits vectors, which would undo exp2's rounding. All of
# this is said of every function, for what is not said numba takes from whoever happens to call a function first.
EXACT = {"contract", "nsz"}
FAST = EXACT | {"reassoc"}
exact = njit(forceinline=True, fastmath=EXACT, error_model="numpy", nogil=True)
fast = njit(forceinline=True, fastmath=FAST, error_model="numpy", nogil=True)

_f = np.float32
LOG2E, LN2 = _f(1.4426950408889634), _f(0.6931471805599453)
_ONE, _TWO, _HALF, _LOWEST, _HIGHEST = _f(1), _f(2), _f(0.5), _f(-126), _f(128)
_ROUND = _f(12582912)  # 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
_E1, _E2, _E3, _E4, _E5 = map(_f, (0.69314700, 0.24022242, 0.055507336, 0.0096715130, 0.0013264724))
_L1, _L2, _L3, _L4 = map(_f, (0.66666317, 0.40024897, 0.27960756, 0.28177720))


def _cast(to: Any, given: Any, make: Any) -> Any:
    """An intrinsic of one argument that is one LLVM instruction, or a few."""

    @intrinsic
    def cast(context: Any, x: Any) -> Any:
        return to(given), lambda _context, builder, _signature, arguments: make(builder, arguments[0])

    return cast


float_of_bits = _cast(types.float32, types.int32, lambda b, x: b.bitcast(x, ir.FloatType()))
bits_of_float = _cast(types.int32, types.float32, lambda b, x: b.bitcast(x, ir.IntType(32)))
float_of_half = _cast(types.float32, types.int16, lambda b, x: b.fpext(b.bitcast(x, ir.HalfType()), ir.FloatType()))
half_of_float = _cast(types.int16, types.float32, lambda b, x: b.bitcast(b.fptrunc(x, ir.HalfType()), ir.IntType(16)))
float_of_bfloat = _cast(
    types.float32,
    types.int16,
    lambda b, x: b.bitcast(b.shl(b.zext(x, ir.IntType(32)), ir.Constant(ir.IntType(32), 16)), ir.FloatType()),
)
pointer = _cast(types.voidptr, types.int64, lambda b, x: b.inttoptr(x, ir.IntType(8).as_pointer()))


@intrinsic
def prefetch(context: Any, address: Any) -> Any:
    """Ask for the cache line of an address, which need not exist."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, all_levels, data = (ir.Constant(number, n) for n in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], byte), read, all_levels, data])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@exact
def bfloat_of_float(x: Any) -> Any:
    """Rounded to the nearest, and to even where two are as near."""
    bits = bits_of_float(x)
    rounded = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    return np.int16(np.int32(0x7FC0) if x != x else rounded)


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once: where LLVM would multiply once for two such sums."""
    number = types.float32
    return number(number, number, number), lambda _context, builder, _signature, arguments: builder.fma(*arguments)


@exact
def exp2_of_product(a: Any, b: Any) -> Any:
    """2^(a b), to 1.2e-7, for a b from -126 to 128."""
    shifted = fma(a, b, _ROUND)
    return _exp2_of_parts(fma(a, b, _ROUND - shifted), shifted)


@exact
def _exp2_of_parts(r: Any, shifted: Any) -> Any:
    """2^(r + n), r from -1/2 to 1/2, where n is in the lowest bits of `shifted`."""
    p = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _ONE
    return float_of_bits(bits_of_float(p) + (bits_of_float(shifted) << np.int32(23)))


@exact
def largest(v: Any, count: Any) -> Any:
    """The largest absolute value, or NaN where there is one; by bits, whose maximum LLVM knows to vectorise."""
    top = np.int32(0)
    for j in range(count):
        top = max(top, bits_of_float(abs(v[j])))
    return float_of_bits(top)


@exact
def exp2(x: Any) -> Any:
    """2^x, to 1.2e-7, 2^-126 instead of less, and infinity from 128 on."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    shifted = x + _ROUND
    return _exp2_of_parts(x - (shifted - _ROUND), shifted)


@exact
def sigmoid(x: Any) -> Any:
    return _ONE / (_ONE + exp2(-LOG2E * x))


@exact
def softplus(x: Any) -> Any:
    """log(1 + e^x) = max(x, 0) + 2 artanh(s), s = u / (2 + u), u = e^-|x|: accurate where it is small, too."""
    u = exp2(-LOG2E * abs(x))
    s = u / (_TWO + u)
    q = s * s
    series = s * (_TWO + q * (_L1 + q * (_L2 + q * (_L3 + q * _L4))))
    return (x if not x < 0 else _f(0)) + series


@exact
def floats(address: Any, count: Any) -> Any:
    return carray(pointer(address), (count,), np.float32)


@exact
def load(to: Any, address: Any, count: Any, kind: Any) -> None:
    """`count` neighbours in memory, as fp32; zero behind them up to the length of `to`."""
    if kind == F32:
        wide = floats(address, count)
        for j in range(count):
            to[j] = wide[j]
    else:
        half = carray(pointer(address), (count,), np.int16)
        if kind == BF16:
            for j in range(count):
                to[j] = float_of_bfloat(half[j])
        else:
            for j in range(count):
                to[j] = float_of_half(half[j])
    for j in range(count, to.size):
        to[j] = _f(0)


@exact
def load_more(to: Any, address: Any, count: Any, kind: Any) -> None:
    """`load`, added to what is there."""
    if kind == F32:
        wide = floats(address, count)
        for j in range(count):
            to[j] += wide[j]
    else:
        half = carray(pointer(address), (count,), np.int16)
        if kind == BF16:
            for j in range(count):
                to[j] += float_of_bfloat(half[j])
        else:
            for j in range(count):
                to[j] += float_of_half(half[j])


@exact
def store(address: Any, values: Any, count: Any, kind: Any) -> None:
    if kind == F32:
        wide = floats(address, count)
        for j in range(count):
            wide[j] = values[j]
    else:
        half = carray(pointer(address), (count,), np.int16)
        if kind == BF16:
            for j in range(count):
                half[j] = bfloat_of_float(values[j])
        else:
            for j in range(count):
                half[j] = half_of_float(values[j])


@exact
def size_of(kind: Any) -> Any:
    """Bytes of a number."""
    return 4 if kind == F32 else 1 if kind == I8 else 2


@exact
def gather(to: Any, base: Any, first: Any, rows: Any, columns: Any, kind: Any, row: Any, column: Any) -> None:
    """As `load`, from number `first` on, for a matrix: `row` and `column` numbers to the next one."""
    address = base + first * size_of(kind)
    if column == 1 and (row == columns or rows == 1):
        load(to[: rows * columns], address, rows * columns, kind)
        return
    span = (rows - 1) * row + (columns - 1) * column + 1
    wide, half = floats(address, span), carray(pointer(address), (span,), np.int16)
    for r in range(rows):
        for c in range(columns):
            at = r * row + c * column
            if kind == F32:
                to[r * columns + c] = wide[at]
            elif kind == BF16:
                to[r * columns + c] = float_of_bfloat(half[at])
            else:
                to[r * columns + c] = float_of_half(half[at])


@exact
def scatter(base: Any, first: Any, values: Any, rows: Any, columns: Any, kind: Any, row: Any, column: Any) -> None:
    """What `gather` has read, back to where it was."""
    address = base + first * size_of(kind)
    if column == 1 and (row == columns or rows == 1):
        store(address, values, rows * columns, kind)
        return
    span = (rows - 1) * row + (columns - 1) * column + 1
    wide, half = floats(address, span), carray(pointer(address), (span,), np.int16)
    for r in range(rows):
        for c in range(columns):
            at = r * row + c * column
            if kind == F32:
                wide[at] = values[r * columns + c]
            elif kind == BF16:
                half[at] = bfloat_of_float(values[r * columns + c])
            else:
                half[at] = half_of_float(values[r * columns + c])


@fast
def normalise(v: Any, count: Any, rms: Any, eps: Any) -> Any:
    """Bring v's first numbers to mean 0 (unless it is an RMS norm) and mean square 1; what they were multiplied by."""
    if rms == 0:
        mean = _f(0)
        for j in range(count):
            mean += v[j]
        mean /= _f(count)
        for j in range(count):
            v[j] -= mean
    square = _f(0)
    for j in range(count):
        square += v[j] * v[j]
    scale = _ONE / np.sqrt(square / _f(count) + eps)
    for j in range(count):
        v[j] *= scale
    return scale


@exact
def ask_for(address: Any, bytes: Any) -> None:
    """Have memory brought to the cache, which need not exist."""
    for line in range(address, address + bytes, LINE):
        prefetch(line)
