"""Layer norm and RMS norm with the residual stream added first, in CUDA C++: kernels/layer_norm.cu tells how.

Letters: D features.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import multiprocessors, pointer

MAX_DIM = 16384
MOST_HELD = 8192  # features of a row for which weight and bias are loaded early
REGISTERS = 65536  # of a multiprocessor


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
    """Shapes and results are the reference's, for D at most 16384.

    x, residual, weight and bias in fp32, fp16 or bf16, mixed freely; y has x's dtype. Computed in fp32. All inputs have
    gradients. Raises BackendError for fp64 or a wider D, ValueError for shapes that don't fit.
    """
    dim = x.shape[-1]
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual {tuple(residual.shape)} must have x's shape {tuple(x.shape)}")
    if weight.shape != (dim,) or (bias is not None and bias.shape != (dim,)):
        raise ValueError(f"weight and bias must have {dim} features, as x has")
    if x.dtype == torch.float64 or (residual is not None and residual.dtype == torch.float64) or dim > MAX_DIM:
        raise BackendError(f"The CUDA norm takes no fp64 and at most {MAX_DIM} features: use the reference back-end.")
    stream_dtype = None
    if prenorm:
        if residual is not None:
            stream_dtype = residual.dtype
        elif residual_in_fp32 and x.dtype != torch.float32:
            stream_dtype = torch.float32
    inputs = (x, weight, bias, residual)
    # Asked here because forward() of an autograd function sees neither no_grad nor inference mode.
    if torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in inputs):
        y, stream = _Norm.apply(*inputs, eps, is_rms_norm, stream_dtype)
    else:
        y, stream = forward(*inputs, eps, is_rms_norm, stream_dtype)
    return (y, x if stream is None else stream) if prenorm else y


class _Cut(NamedTuple):
    """How kernels/layer_norm.cu cuts the rows."""

    packs: int  # vectors of a thread
    warps: int  # of a row
    rows: int  # of a block

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps * self.rows


def _cut(dim: int, vector: int, most: int) -> _Cut:
    """For at most `most` numbers a thread."""
    fewest = -(-dim // (32 * most))
    loads = dim // vector
    # Up to twice the fewest warps where these would leave some threads idle.
    warps = next((n for n in range(fewest, 2 * fewest) if loads % (32 * n) == 0), fewest)
    return _Cut(-(-loads // (32 * warps)), warps, 4 if warps == 1 else 1)


class _Plan(NamedTuple):
    """A compiled kernel and how it is launched."""

    launch: Any
    threads: int
    rows: int  # of a block
    most_blocks: int  # of the backward: what the GPU holds at once
    eps: int  # the bits of a double


@cache
def _plan(
    name: str,
    device: torch.device,
    dim: int,
    aligned: bool,
    x: torch.dtype,
    stream: torch.dtype,
    weight: torch.dtype,
    bias: torch.dtype | None,
    has_residual: bool,
    has_stream: bool,
    summed: bool,
    rms: bool,
    eps: float,
) -> _Plan:
    vector = 16 // max(x.itemsize, stream.itemsize) if aligned else 1
    while dim % vector:
        vector //= 2
    if name == "norm_forward":
        cut, hold, blocks = _cut(dim, vector, 32), dim <= MOST_HELD, 1
    else:
        cut = _cut(dim, vector, 8 if vector < 4 else 24 if dim <= 768 else 16)
        # What the compiler takes: few threads with all in registers keep more bytes in flight than many that wait.
        of_a_number = 5.5 + (bias is not None) + 1.5 * (not rms) + 3 * (vector < 4)
        blocks = int(REGISTERS / (cut.threads * (36 + of_a_number * cut.packs * vector)))
        hold = blocks > 0
        if not hold:
            cut, blocks = _cut(dim, vector, 32), 1
    constants: dict[str, int | str | bool] = {
        "X_TYPE": compiler.TYPES[x],
        "STREAM_TYPE": compiler.TYPES[stream],
        "WEIGHT_TYPE": compiler.TYPES[weight],
        "BIAS_TYPE": compiler.TYPES[weight if bias is None else bias],
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": has_residual,
        "HAS_STREAM": has_stream,
        "SUMMED": summed,
        "RMS": rms,
        "VEC": vector,
        "PACKS": cut.packs,
        "ROW_WARPS": cut.warps,
        "ROWS": cut.rows,
        "HOLD": hold,
        "BLOCKS": blocks,
    }
    launch = compiler.kernel("layer_norm.cu", name, device, constants)
    (bits,) = struct.unpack("q", struct.pack("d", eps))
    return _Plan(launch, cut.threads, cut.rows, blocks * multiprocessors(device), bits)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    rms: bool,
    stream_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """y, and x + residual in `stream_dtype`, which is the residual's where there is one; with None it isn't written."""
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = torch.empty_like(x)
    stream = None if stream_dtype is None else torch.empty_like(x, dtype=stream_dtype)
    if x.numel() == 0:
        return y, stream
    dim = x.shape[-1]
    rows = x.numel() // dim
    pointers = tuple(map(pointer, (x, residual, weight, bias, y, stream)))
    plan = _plan(
        "norm_forward",
        x.device,
        dim,
        _aligned(pointers),
        x.dtype,
        stream_dtype or (x if residual is None else residual).dtype,
        weight.dtype,
        None if bias is None else bias.dtype,
        residual is not None,
        stream is not None,
        False,
        rms,
        eps,
    )
    plan.launch(-(-rows // plan.rows), plan.threads, *pointers, plan.eps, rows, dim)
    return y, stream


class Gradients(NamedTuple):
    """Of x, residual, weight, bias: in their dtypes."""

    dx: Tensor
    dresidual: Tensor | None
    dweight: Tensor
    dbias: Tensor | None


def backward(
    dy: Tensor,
    dstream: Tensor | None,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    rms: bool,
) -> Gradients:
    """The gradients of `forward`. x None: `residual` is the stream, the sum x + residual, in the residual's dtype."""
    dy, weight = dy.contiguous(), weight.contiguous()
    x = None if x is None else x.contiguous()
    residual = None if residual is None else residual.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    dim = dy.shape[-1]
    dx = torch.empty_like(dy)
    stream_dtype = next((m.dtype for m in (residual, dstream) if m is not None), dy.dtype)
    # Their values are the same, so dx serves for both where their dtypes are, too.
    own = residual is not None and stream_dtype != dy.dtype
    dresidual = torch.empty_like(dy, dtype=stream_dtype) if own else None
    if dy.numel() == 0:
        dweight, dbias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        return Gradients(dx, None if residual is None else torch.empty_like(residual), dweight, dbias)
    rows = dy.numel() // dim
    pointers = tuple(map(pointer, (x, residual, weight, dy, dstream, dx, dresidual)))
    plan = _plan(
        "norm_backward",
        dy.device,
        dim,
        _aligned(pointers),
        dy.dtype,
        stream_dtype,
        weight.dtype,
        None if bias is None else bias.dtype,
        residual is not None,
        dstream is not None,
        x is None,
        rms,
        eps,
    )
    blocks = min(-(-rows // plan.rows), plan.most_blocks)
    parts = dy.new_empty(1 if bias is None else 2, blocks, dim, dtype=torch.float32)
    plan.launch(blocks, plan.threads, *pointers, parts.data_ptr(), plan.eps, rows, dim)
    total = parts.sum(1)
    return Gradients(
        dx,
        dresidual if own or residual is None else dx,
        total[0].to(weight.dtype),
        None if bias is None else total[1].to(bias.dtype),
    )


def _aligned(pointers: tuple[int, ...]) -> bool:
    """Whether all can be loaded in vectors of 16 bytes."""
    return all(address % 16 == 0 for address in pointers)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        rms: bool,
        stream_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.rms, ctx.x_dtype = eps, rms, x.dtype
        y, stream = forward(x, weight, bias, residual, eps, rms, stream_dtype)
        # A stream in fp32 is all that the backward needs, and the next layer keeps it anyhow; a rounded one is not.
        if residual is not None and stream_dtype == torch.float32:
            ctx.save_for_backward(None, weight, bias, stream)
        else:
            ctx.save_for_backward(x, weight, bias, residual)
        return y, stream

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(residual if x is None else x, dtype=ctx.x_dtype)
        g = backward(dy, dstream, x, weight, bias, residual, ctx.eps, ctx.rms)
        return g.dx, g.dweight, g.dbias, g.dresidual, None, None, None
