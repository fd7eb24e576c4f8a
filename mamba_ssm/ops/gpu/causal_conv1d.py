"""Causal depthwise convolution over time on a GPU, through Triton, with state in and out.

Letters: B batch, D channels, L length, W width of the kernel. Conditions on a pointer being None are settled
when a kernel is compiled, so they stand apart from run-time ones.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.gpu.launch import on_device
from mamba_ssm.ops.layout import channel_last, empty_like_layout
from mamba_ssm.ops.steps import update_by

# ruff: noqa: SIM102
# mypy: disable-error-code="assignment,var-annotated"
MAX_WIDTH = 8


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
    """y_t = act(bias + sum_w weight_w x_{t-W+1+w}), each channel by itself (arXiv 2312.00752, section 3.4).

    Args:
        x: (B, D, L), any strides; views of (B, L, D) are the fast layout. weight: (D, W), W at most 8. bias: (D,).
        seq_idx: (B, L) integers: the sequence that a token belongs to, in a row that packs several one after the
            other. No token sees another sequence; outputs where it is negative (padding) are zero.
        initial_states: (B, D, W-1), the inputs before the first token (of the first token's sequence); else zero.
        return_final_states: also return the last W-1 inputs, (B, D, W-1), zero where they belong to another sequence
            than the last token; written into final_states_out when given.
        activation: None, "silu" or "swish" (the same).

    Returns:
        out (B, D, L) in x's dtype and layout, or (out, final_states). Computed in fp32. Raises BackendError for fp64
        or a wider kernel.
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is None, 'silu' or 'swish', not {activation!r}")
    if x.dtype == torch.float64 or weight.shape[1] > MAX_WIDTH:
        raise BackendError(f"The Triton convolution takes no fp64 and widths up to {MAX_WIDTH}: use the reference.")
    out = _CausalConv1d.apply(x, weight, bias, seq_idx, initial_states, activation is not None)
    if not return_final_states:
        return out
    final = _final_states(x, weight.shape[1] - 1, seq_idx, initial_states)
    return out, final if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Shapes and results are the reference's."""
    return update_by(causal_conv1d_fn, x, conv_state, weight, bias, activation)


def _final_states(x: Tensor, history: int, seq_idx: Tensor | None, initial: Tensor | None) -> Tensor:
    batch, dim, length = x.shape
    final = x[..., max(0, length - history) :]
    missing = history - final.shape[-1]
    if missing:
        before = x.new_zeros(batch, dim, history) if initial is None else initial.to(x.dtype)
        final = torch.cat([before[..., history - missing :], final], dim=-1)
    if seq_idx is not None and length > 0:
        ids = torch.cat([seq_idx[:, :1].expand(batch, missing), seq_idx[:, max(0, length - history) :]], dim=-1)
        final = final * (ids == seq_idx[:, -1:])[:, None]
    return final.clone()


@triton.jit
def load_input(x_ptr, initial_ptr, x_strides, initial_strides, row, d, t, length, mask, W: tl.constexpr):
    """x at times t, which may lie before 0 (the initial state, or zero) or after the end (zero); fp32."""
    x_at = x_ptr + row * x_strides[0] + d.to(tl.int64) * x_strides[1] + t.to(tl.int64) * x_strides[2]
    x = tl.load(x_at, mask=mask & (t >= 0) & (t < length), other=0.0).to(tl.float32)
    if initial_ptr is not None:
        initial_at = initial_ptr + row * initial_strides[0] + d * initial_strides[1] + (t + W - 1) * initial_strides[2]
        x += tl.load(initial_at, mask=mask & (t < 0) & (t > -W), other=0.0).to(tl.float32)
    return x


@triton.jit
def load_sequence(seq_ptr, seq_strides, row, t, length):
    """The sequence of times t: before 0, the first token's; after the end, none."""
    inside = tl.maximum(t, 0).to(tl.int64)
    return tl.load(seq_ptr + row * seq_strides[0] + inside * seq_strides[1], mask=t < length, other=-1)


@triton.jit
def convolve(
    x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, x_strides, weight_strides, seq_strides, initial_strides,
    row, d, t, d_mask, length, W: tl.constexpr,
):  # fmt: skip
    """bias + sum_w weight_w x_{t-W+1+w} at times t, before the activation; fp32."""
    mask = d_mask & (t < length)
    y = tl.zeros(mask.shape, tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + d, mask=d_mask, other=0.0).to(tl.float32)
    for w in tl.static_range(W):
        source = t + (w - W + 1)
        x = load_input(x_ptr, initial_ptr, x_strides, initial_strides, row, d, source, length, mask, W)
        if seq_ptr is not None:
            same = load_sequence(seq_ptr, seq_strides, row, source, length) == load_sequence(
                seq_ptr, seq_strides, row, t, length
            )
            x = tl.where(same, x, 0.0)
        y += x * tl.load(weight_ptr + d * weight_strides[0] + w * weight_strides[1], mask=d_mask, other=0.0)
    return y


@triton.jit
def tile(dim, length, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """(batch row, tile of time, channels (1, BLOCK_D), times (BLOCK_T, 1)) of this program."""
    pid = tl.program_id(0)
    d_tiles = tl.cdiv(dim, BLOCK_D)
    t_tiles = tl.cdiv(length, BLOCK_T)
    t_tile = (pid // d_tiles) % t_tiles
    d = (pid % d_tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    t = t_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    return (pid // d_tiles // t_tiles).to(tl.int64), t_tile, d[None, :], t[:, None]


@triton.jit
def conv_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, out_ptr,
    x_strides, weight_strides, seq_strides, initial_strides, out_strides, dim, length,
    SILU: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, _, d, t = tile(dim, length, BLOCK_T, BLOCK_D)
    y = convolve(
        x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, x_strides, weight_strides, seq_strides, initial_strides,
        row, d, t, d < dim, length, W,
    )  # fmt: skip
    if SILU:
        y *= tl.sigmoid(y)
    if seq_ptr is not None:
        y = tl.where(load_sequence(seq_ptr, seq_strides, row, t, length) >= 0, y, 0.0)
    out_at = out_ptr + row * out_strides[0] + d.to(tl.int64) * out_strides[1] + t.to(tl.int64) * out_strides[2]
    tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=(d < dim) & (t < length))


@triton.jit
def load_dy(
    x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, dout_ptr,
    x_strides, weight_strides, seq_strides, initial_strides, dout_strides,
    row, d, t, d_mask, length, SILU: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Gradient of the sum before the activation, at times t. The sum is computed again: cheaper than keeping it."""
    dout_at = dout_ptr + row * dout_strides[0] + d.to(tl.int64) * dout_strides[1] + t.to(tl.int64) * dout_strides[2]
    dy = tl.load(dout_at, mask=d_mask & (t >= 0) & (t < length), other=0.0).to(tl.float32)
    if SILU:
        y = convolve(
            x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, x_strides, weight_strides, seq_strides,
            initial_strides, row, d, t, d_mask, length, W,
        )  # fmt: skip
        gate = tl.sigmoid(y)
        dy *= gate * (1.0 + y * (1.0 - gate))
    if seq_ptr is not None:
        dy = tl.where(load_sequence(seq_ptr, seq_strides, row, t, length) >= 0, dy, 0.0)
    return dy


@triton.jit
def conv_backward_kernel(
    x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, dout_ptr, dx_ptr, dinitial_ptr, dweight_ptr, dbias_ptr,
    x_strides, weight_strides, seq_strides, initial_strides, dout_strides, dx_strides, dim, length,
    SILU: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx_t = sum_w weight_w dy_{t+W-1-w}, dweight_w = sum_t dy_t x_{t-W+1+w}, dbias = sum_t dy_t.

    The sums over time leave one partial a program, (B * tiles of time, W, D) and (B * tiles of time, D), in fp32.
    """
    row, t_tile, d, t = tile(dim, length, BLOCK_T, BLOCK_D)
    d_mask = d < dim
    mask = d_mask & (t < length)
    part = row * tl.cdiv(length, BLOCK_T) + t_tile
    dx = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    dinitial = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for w in tl.static_range(W):
        # Gradient at t + W-1-w flows to t; for dinitial, from t - w = t - (W-1) + (W-1-w) to t - (W-1).
        dy = load_dy(
            x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, dout_ptr, x_strides, weight_strides, seq_strides,
            initial_strides, dout_strides, row, d, t + (W - 1 - w), d_mask, length, SILU, W,
        )  # fmt: skip
        weight = tl.load(weight_ptr + d * weight_strides[0] + w * weight_strides[1], mask=d_mask, other=0.0)
        x = load_input(x_ptr, initial_ptr, x_strides, initial_strides, row, d, t, length, mask, W)
        if seq_ptr is not None:
            same = load_sequence(seq_ptr, seq_strides, row, t, length) == load_sequence(
                seq_ptr, seq_strides, row, t + (W - 1 - w), length
            )
            dy = tl.where(same, dy, 0.0)
        dy = tl.where(mask, dy, 0.0)
        dx += dy * weight
        dweight = tl.sum(dy * x, axis=0)[None, :]
        if w == W - 1:
            if dbias_ptr is not None:
                tl.store(dbias_ptr + part * dim + d, tl.sum(dy, axis=0)[None, :], mask=d_mask)
        if initial_ptr is not None:
            # The first tile also stands for the times -W+1 .. -1, the initial state.
            if t_tile == 0:
                before = t - (W - 1)
                early = load_dy(
                    x_ptr, weight_ptr, bias_ptr, seq_ptr, initial_ptr, dout_ptr, x_strides, weight_strides,
                    seq_strides, initial_strides, dout_strides, row, d, t - w, d_mask, length, SILU, W,
                )  # fmt: skip
                if seq_ptr is not None:
                    same = load_sequence(seq_ptr, seq_strides, row, before, length) == load_sequence(
                        seq_ptr, seq_strides, row, t - w, length
                    )
                    early = tl.where(same, early, 0.0)
                early = tl.where((before < 0) & (t >= w), early, 0.0)
                dinitial += early * weight
                x0 = load_input(
                    x_ptr, initial_ptr, x_strides, initial_strides, row, d, before, length, d_mask & (before < 0), W
                )
                dweight += tl.sum(early * x0, axis=0)[None, :]
        tl.store(dweight_ptr + (part * W + w) * dim + d, dweight, mask=d_mask)
    dx_at = dx_ptr + row * dx_strides[0] + d.to(tl.int64) * dx_strides[1] + t.to(tl.int64) * dx_strides[2]
    tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if dinitial_ptr is not None:
        if t_tile == 0:
            dinitial_at = dinitial_ptr + (row * dim + d) * (W - 1) + t
            tl.store(dinitial_at, dinitial, mask=d_mask & (t < W - 1))


def _blocks(x: Tensor) -> dict[str, int]:
    """A tile is longest along the axis that is contiguous."""
    return {"BLOCK_T": 16, "BLOCK_D": 64} if channel_last(x) else {"BLOCK_T": 64, "BLOCK_D": 16}


def _grid(x: Tensor, blocks: dict[str, int]) -> tuple[int]:
    batch, dim, length = x.shape
    return (batch * triton.cdiv(length, blocks["BLOCK_T"]) * triton.cdiv(dim, blocks["BLOCK_D"]),)


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial: Tensor | None,
        silu: bool,
    ) -> Tensor:
        bias = None if bias is None else bias.contiguous()
        ctx.silu = silu
        ctx.save_for_backward(x, weight, bias, seq_idx, initial)
        out = empty_like_layout(x)
        if x.numel() == 0:
            return out
        blocks = _blocks(x)
        with on_device(x):
            conv_forward_kernel[_grid(x, blocks)](
                x, weight, bias, seq_idx, initial, out, *_strides(x, weight, seq_idx, initial, out), *x.shape[1:],
                SILU=silu, W=weight.shape[1], **blocks,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, seq_idx, initial = ctx.saved_tensors
        if x.numel() == 0:
            return *(None if m is None else torch.zeros_like(m) for m in (x, weight, bias)), None, None, None
        (batch, dim, length), width, blocks = x.shape, weight.shape[1], _blocks(x)
        parts = batch * triton.cdiv(length, blocks["BLOCK_T"])
        fp32 = {"dtype": torch.float32, "device": x.device}
        dx = empty_like_layout(x)
        dweight = torch.empty(parts, width, dim, **fp32)
        dbias = None if bias is None else torch.empty(parts, dim, **fp32)
        dinitial = None if initial is None else torch.empty(batch, dim, width - 1, **fp32)
        with on_device(x):
            conv_backward_kernel[_grid(x, blocks)](
                x, weight, bias, seq_idx, initial, dout, dx, dinitial, dweight, dbias,
                *_strides(x, weight, seq_idx, initial, dout, dx), dim, length, SILU=ctx.silu, W=width, **blocks,
            )  # fmt: skip
        return (
            dx,
            dweight.sum(0).T.to(weight.dtype),
            None if dbias is None else dbias.sum(0).to(bias.dtype),
            None,
            None if dinitial is None else dinitial.to(initial.dtype),
            None,
        )


def _strides(*tensors: Tensor | None) -> list[tuple[int, ...]]:
    return [(0, 0, 0) if m is None else m.stride() for m in tensors]
