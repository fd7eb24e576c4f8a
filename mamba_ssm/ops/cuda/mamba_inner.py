"""A whole Mamba mixer after its input projection, for training: what the backward pass can make again is not kept.

Kept: xz, the projections of dt, B and C, and a state every 32 steps. Made again: the convolution's output, dt, and the
scan's output, which the scan's backward needs anyhow. A number of xz (B, L, 2D) so costs 2 more bytes instead of 8.

Letters: B batch, L length, D channels, N state, R rank of delta, W width of the convolution, E width of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_ssm.ops.cuda import causal_conv1d as conv
from mamba_ssm.ops.cuda import selective_scan as scan


def mamba_inner_fn(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
) -> Tensor:
    """xz (B, 2D, L), any strides, views of (B, L, 2D) are the fast layout: (B, L, E) in autocast's dtype or xz's.

    conv_weight (D, W), conv_bias (D,), x_proj_weight (R + 2N, D), dt_proj_weight (D, R), out_proj_weight (E, D),
    out_proj_bias (E,). A (D, N), D, dt_bias (D,): fp32.
    """
    if torch.is_autocast_enabled(xz.device.type):
        dtype = torch.get_autocast_dtype(xz.device.type)
        xz, x_proj_weight, dt_proj_weight, out_proj_weight = (
            m.to(dtype) for m in (xz, x_proj_weight, dt_proj_weight, out_proj_weight)
        )
        out_proj_bias = None if out_proj_bias is None else out_proj_bias.to(dtype)
    with torch.autocast(xz.device.type, enabled=False):
        return _MambaInner.apply(
            xz,
            conv_weight.contiguous(),
            None if conv_bias is None else conv_bias.contiguous(),
            x_proj_weight,
            dt_proj_weight,
            out_proj_weight,
            out_proj_bias,
            *(None if m is None else m.float().contiguous() for m in (A, D, dt_bias)),
            softplus,
        )


def _inputs(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_proj_weight: Tensor,
    x_dbl: Tensor | None,
    x_proj: Tensor,
) -> tuple[Tensor, ...]:
    """What the scan reads: x and delta (B, D, L), B and C (B, 1, N, L), z (B, D, L); and x_dbl (B, L, R + 2N)."""
    x, z = xz.chunk(2, dim=1)
    x = conv.forward(x, conv_weight, conv_bias, None, None, True)
    rank = dt_proj_weight.shape[1]
    if x_dbl is None:
        x_dbl = x.transpose(1, 2) @ x_proj.t()
    states = (x_dbl.shape[-1] - rank) // 2
    dt, B, C = x_dbl.split([rank, states, states], dim=-1)
    delta = dt @ dt_proj_weight.t()
    return x, delta.transpose(1, 2), *(m.transpose(1, 2).unsqueeze(1) for m in (B, C)), z, x_dbl


class _MambaInner(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        x_proj_weight: Tensor,
        dt_proj_weight: Tensor,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        dt_bias: Tensor | None,
        softplus: bool,
    ) -> Tensor:
        x, delta, B, C, z, x_dbl = _inputs(xz, conv_weight, conv_bias, dt_proj_weight, None, x_proj_weight)
        out, _, saved = scan.forward(x, delta, A, B, C, D, z, dt_bias, None, None, softplus, save=True)
        ctx.softplus, ctx.has_out_bias = softplus, out_proj_bias is not None
        ctx.save_for_backward(
            xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, out_proj_weight, A, D, dt_bias, x_dbl, saved
        )
        return torch.nn.functional.linear(out.transpose(1, 2), out_proj_weight, out_proj_bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, out_proj_weight, A, D, dt_bias, x_dbl, saved = (
            ctx.saved_tensors
        )
        if saved is None:
            inputs = (xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, out_proj_weight)
            none = [None if m is None else torch.zeros_like(m) for m in (*inputs, A, D, dt_bias)]
            bias = dy.sum((0, 1)) if ctx.has_out_bias else None
            return *none[:6], bias, *none[6:], None
        x, delta, B, C, z, _ = _inputs(xz, conv_weight, conv_bias, dt_proj_weight, x_dbl, x_proj_weight)
        rank = dt_proj_weight.shape[1]
        dxz = torch.empty_strided(xz.shape, xz.stride(), dtype=xz.dtype, device=xz.device)
        dx, dz = dxz.chunk(2, dim=1)

        dy_rows = dy.flatten(0, 1)
        dout = (dy_rows @ out_proj_weight).view(*dy.shape[:2], -1).transpose(1, 2)
        scanned = (x, delta, A, B, C, D, z, dt_bias, None, None, ctx.softplus)
        g = scan.backward(dout, None, saved, *scanned, dz=dz, again=True, in_place=True)
        assert g.out is not None
        d_out_proj = dy_rows.t() @ _rows(g.out)
        ddelta = _rows(g.ddelta)
        dx_dbl = torch.empty_like(x_dbl).flatten(0, 1)
        torch.mm(ddelta, dt_proj_weight, out=dx_dbl[:, :rank])
        torch.cat([m.squeeze(1).transpose(1, 2).flatten(0, 1) for m in (g.dB, g.dC)], -1, out=dx_dbl[:, rank:])
        d_dt_proj = ddelta.t() @ x_dbl.flatten(0, 1)[:, :rank]
        d_x_proj = dx_dbl.t() @ _rows(x)
        _rows(g.du).addmm_(dx_dbl, x_proj_weight)
        into = conv.backward(g.du, xz.chunk(2, dim=1)[0], conv_weight, conv_bias, None, None, True, dx=dx)
        return (
            dxz,
            into.dweight.to(conv_weight.dtype),
            None if into.dbias is None or conv_bias is None else into.dbias.to(conv_bias.dtype),
            d_x_proj,
            d_dt_proj,
            d_out_proj,
            dy_rows.sum(0) if ctx.has_out_bias else None,
            g.dA,
            g.dD,
            g.dbias,
            None,
        )


def _rows(m: Tensor) -> Tensor:
    """(B, D, L) to (B * L, D)."""
    return m.transpose(1, 2).flatten(0, 1)
