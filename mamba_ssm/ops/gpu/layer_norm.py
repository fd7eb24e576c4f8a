"""Layer norm and RMS norm with the residual stream added first, on a GPU through Triton.

LayerNorm: Ba et al. 2016, arXiv 1607.06450, equation 4. RMSNorm: Zhang & Sennrich 2019, arXiv 1910.07467, equation 4.
With s = x + residual, c = s - mean(s) (RMSNorm: c = s) and r = 1 / sqrt(mean(c^2) + eps):

    y = c r weight + bias          g = dy weight          ds = r (g - c r mean(g c r) [- mean(g)]) + d(residual out)

One program holds a whole row, so every row is read once. Statistics and the stream are fp32: the mean of squares of a
half-precision row would round at every addition, and the stream adds up all layers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.gpu.launch import on_device, target_programs

# mypy: disable-error-code="assignment,var-annotated"
MAX_DIM = 16384


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
    """Normalise x + residual over the last dimension.

    Args:
        x, residual: (..., D), D at most 16384. weight, bias: (D,).
        prenorm: also return the sum x + residual, the new residual stream.
        residual_in_fp32: without a residual, the stream starts in fp32; a residual that is given keeps its dtype.

    Returns:
        y (..., D) in x's dtype, or (y, residual). Computed in fp32. Raises BackendError for fp64 or a wider D.
    """
    if x.dtype == torch.float64 or x.shape[-1] > MAX_DIM:
        raise BackendError(f"The Triton norm takes no fp64 and at most {MAX_DIM} features: use the reference back-end.")
    if residual is not None:
        y, stream = _Norm.apply(x, weight, bias, residual, eps, is_rms_norm)
        return (y, stream) if prenorm else y
    y, _ = _Norm.apply(x, weight, bias, None, eps, is_rms_norm)
    if not prenorm:
        return y
    return y, x.float() if residual_in_fp32 else x


@triton.jit
def load_row(ptr, row, offsets, mask, dim):
    return tl.load(ptr + row.to(tl.int64) * dim + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def normalise(s, mask, dim, eps, RMS: tl.constexpr):
    """c r, and r."""
    centred = s
    if not RMS:
        centred = tl.where(mask, s - tl.sum(s, axis=0) / dim, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / dim + eps)
    return centred * scale, scale


@triton.jit
def norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, stream_ptr, dim, eps, RMS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < dim
    s = load_row(x_ptr, row, offsets, mask, dim)
    at = row.to(tl.int64) * dim + offsets
    if residual_ptr is not None:
        s += load_row(residual_ptr, row, offsets, mask, dim)
        tl.store(stream_ptr + at, s.to(stream_ptr.dtype.element_ty), mask=mask)
    y, _ = normalise(s, mask, dim, eps, RMS)
    y *= tl.load(weight_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward_kernel(
    x_ptr, weight_ptr, residual_ptr, dy_ptr, dstream_ptr, dx_ptr, dresidual_ptr, dweight_ptr, dbias_ptr,
    rows, rows_per_program, dim, eps, RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes some rows one after the other and leaves one partial of dweight and dbias, (programs, D)."""
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < dim
    weight = tl.load(weight_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    first = program * rows_per_program
    for row in range(first, tl.minimum(first + rows_per_program, rows)):
        at = tl.cast(row, tl.int64) * dim + offsets
        s = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            s += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
        normal, scale = normalise(s, mask, dim, eps, RMS)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dweight += dy * normal
        dbias += dy
        g = dy * weight
        ds = g - normal * (tl.sum(g * normal, axis=0) / dim)
        if not RMS:
            ds -= tl.sum(g, axis=0) / dim
        ds *= scale
        if dstream_ptr is not None:
            ds += tl.load(dstream_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, ds.to(dx_ptr.dtype.element_ty), mask=mask)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, ds.to(dresidual_ptr.dtype.element_ty), mask=mask)
    part = program.to(tl.int64) * dim + offsets
    tl.store(dweight_ptr + part, dweight, mask=mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + part, dbias, mask=mask)


def _meta(dim: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, rms: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        x, weight = x.contiguous(), weight.contiguous()
        bias, residual = (None if m is None else m.contiguous() for m in (bias, residual))
        ctx.eps, ctx.rms, ctx.bias_dtype = eps, rms, None if bias is None else bias.dtype
        ctx.x_dtype, ctx.residual_dtype = x.dtype, None if residual is None else residual.dtype
        dim = x.shape[-1]
        y, stream = torch.empty_like(x), None if residual is None else torch.empty_like(residual)
        if x.numel():
            with on_device(x):
                norm_forward_kernel[(x.numel() // dim,)](
                    x, weight, bias, residual, y, stream, dim, eps, RMS=rms, **_meta(dim)
                )
        # A stream in fp32 is all that the backward needs, and the next layer keeps it anyhow; a rounded one is not.
        if stream is not None and stream.dtype == torch.float32:
            ctx.save_for_backward(stream, weight, None)
        else:
            ctx.save_for_backward(x, weight, residual)
        return y, stream

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, residual = ctx.saved_tensors
        shape, dim = x.shape, x.shape[-1]
        rows = x.numel() // dim if dim else 0
        dy = x.new_zeros(shape, dtype=ctx.x_dtype) if dy is None else dy.contiguous()
        dstream = None if dstream is None else dstream.contiguous()
        dx = torch.empty(shape, dtype=ctx.x_dtype, device=x.device)
        dresidual = None
        if ctx.residual_dtype is not None:
            same = ctx.residual_dtype == ctx.x_dtype
            dresidual = dx if same else torch.empty(shape, dtype=ctx.residual_dtype, device=x.device)
        meta = _meta(max(dim, 1))
        per_program = max(1, triton.cdiv(rows, max(1, target_programs(x, meta["num_warps"]))))
        programs = triton.cdiv(rows, per_program)
        dweight = torch.empty(programs, dim, dtype=torch.float32, device=x.device)
        dbias = None if ctx.bias_dtype is None else torch.empty_like(dweight)
        if rows:
            with on_device(x):
                norm_backward_kernel[(programs,)](
                    x, weight, residual, dy, dstream, dx, None if dresidual is dx else dresidual, dweight, dbias,
                    rows, per_program, dim, ctx.eps, RMS=ctx.rms, **meta,
                )  # fmt: skip
        dbias = None if dbias is None else dbias.sum(0).to(ctx.bias_dtype)
        return dx, dweight.sum(0).to(weight.dtype), dbias, dresidual, None, None
