"""Causal depthwise convolution over time on an NVIDIA GPU, in CUDA C++: kernels/causal_conv1d.cu tells how.

Letters: B batch, D channels, L length, W width of the kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.causal_conv1d_update import WIDTHS, causal_conv1d_update
from mamba_ssm.ops.cuda.layout import multiprocessors, pointer, signature, strides
from mamba_ssm.ops.layout import channel_last, empty_like_layout

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]

WARPS = 4  # of a block
STEPS = 4  # a thread loads together, channel-last
BYTES = {True: 8, False: 16}  # it loads at once, by channel-last: more channels leave no registers for enough warps
# By (channel-last, backward): the blocks of a multiprocessor, and how often they fill all of them. Channel-last, short
# runs are best forward and long ones backward, which computes the W-1 steps after each once more.
CUTS = {(True, False): (8, 14), (True, True): (4, 1), (False, False): (8, 2), (False, True): (8, 2)}
SHORTEST_RUN = 8  # steps of a thread, channel-last
MOST_TILES = 8  # of a warp, channel-first
MOST_PLANS = 1024  # that are kept


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
    """y_t = act(bias + Σ_w weight_w x_{t-W+1+w}), each channel by itself (arXiv 2312.00752, section 3.4).

    Args:
        x: (B, D, L), any strides; views of (B, L, D), also slices of wider ones, and (B, D, L) with an L that is a
            multiple of 4 are fast. weight: (D, W), W 2 to 4. bias: (D,).
        seq_idx: (B, L) integers: the sequence that a token belongs to, in a row that packs several one after the
            other. No token sees another sequence; outputs where it is negative (padding) are zero.
        initial_states: (B, D, W-1), the inputs before the first token (of the first token's sequence); else zero.
        return_final_states: also return the last W-1 inputs, (B, D, W-1), zero where they belong to another sequence
            than the last token; written into final_states_out when given.
        activation: None, "silu" or "swish" (the same).

    Returns:
        out (B, D, L) in x's dtype and layout, or (out, final_states). fp32, fp16 or bf16, mixed freely, computed in
        fp32. All inputs have gradients, through both results. Raises BackendError for fp64 and other widths.
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is None, 'silu' or 'swish', not {activation!r}")
    if weight.shape[1] not in WIDTHS:
        raise BackendError(f"The CUDA convolution takes widths 2 to 4, got {weight.shape[1]}: use the reference.")
    inputs = (x, weight, bias, initial_states)
    if any(m is not None and m.dtype == torch.float64 for m in inputs):
        raise BackendError("The CUDA convolution computes in fp32: use the reference back-end for fp64.")
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    sequence = None if seq_idx is None else seq_idx.int().contiguous()
    silu = activation is not None
    # Asked here because forward() of an autograd function sees neither no_grad nor inference mode.
    if torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in inputs):
        out, final = _CausalConv1d.apply(x, weight, bias, sequence, initial_states, silu, return_final_states)
    else:
        out = forward(x, weight, bias, sequence, initial_states, silu)
        final = _final_states(x, weight.shape[1] - 1, sequence, initial_states) if return_final_states else None
    if final is None:
        return out
    return out, final if final_states_out is None else final_states_out.copy_(final)


class _Launch:
    """How kernels/causal_conv1d.cu cuts the work on x (B, D, L), y (out or dout) and dx."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sequence: Tensor | None,
        initial: Tensor | None,
        silu: bool,
        y: Tensor,
        dx: Tensor | None,
    ) -> None:
        batch, dim, length = x.shape
        tensors = (x, y) if dx is None else (x, y, dx)
        last = channel_last(x)
        axis, fewest = (1, 1) if last else (2, 4)
        vector = BYTES[last] // x.element_size()
        while not (fit := x.shape[axis] % vector == 0 and all(signature(m).vectors(axis, vector) for m in tensors)):
            if vector == fewest:
                break
            vector //= 2
        blocks, times = CUTS[last, dx is not None]
        blocks = blocks if sequence is None else blocks * 3 // 4  # the sequences take registers
        wanted = times * blocks * multiprocessors(x.device)
        if last:
            columns = -(-dim // (32 * vector))
            spans = max(1, min(wanted // (batch * columns), -(-length // (SHORTEST_RUN * WARPS))))
            run = -(-length // (spans * WARPS * STEPS)) * STEPS
            spans = -(-length // (run * WARPS))
        else:
            columns, tile = -(-dim // WARPS), 32 * vector
            run = min(MOST_TILES, max(1, batch * columns * -(-length // tile) // wanted)) * tile
            spans = -(-length // run)
        self.spans = batch * spans
        self._sizes = (dim, length, run, spans)
        self._blocks, self._threads = batch * columns * spans, WARPS * 32
        self._device = x.device
        self._constants: dict[str, int | str | bool] = {
            "BACKWARD": dx is not None,
            "CHANNEL_LAST": last,
            "SILU": silu,
            "PACKED": sequence is not None,
            "WIDTH": weight.shape[1],
            "VECTOR": vector,
            "VECTORS": fit,
            "STEPS": STEPS,
            "WARPS": WARPS,
            "BLOCKS": blocks,
            "X_TYPE": compiler.TYPES[x.dtype],
            "WEIGHT_TYPE": compiler.TYPES[weight.dtype],
            "BIAS_TYPE": compiler.TYPES[weight.dtype if bias is None else bias.dtype],
            "INITIAL_TYPE": compiler.TYPES[x.dtype if initial is None else initial.dtype],
        }

    def run(self, tensors: tuple[Tensor | None, ...], strided: tuple[Tensor | None, ...]) -> None:
        launch = compiler.kernel("causal_conv1d.cu", "causal_conv1d", self._device, self._constants)
        launch(self._blocks, self._threads, *map(pointer, tensors), *strides(*strided), *self._sizes)


_plans: dict[tuple[Any, ...], _Launch] = {}


def _plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sequence: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    y: Tensor,
    dx: Tensor | None,
) -> _Launch:
    """A _Launch of these arguments, kept: a model asks for the same ones in every layer."""
    key = (
        *(x.shape, x.stride(), x.dtype, x.device, y.stride(), None if dx is None else dx.stride()),
        (x.data_ptr() | y.data_ptr() | pointer(dx)) % 16,
        *(weight.shape[1], weight.dtype, None if bias is None else bias.dtype),
        *(sequence is None, None if initial is None else initial.dtype, silu),
    )
    if (plan := _plans.get(key)) is None:
        if len(_plans) == MOST_PLANS:
            _plans.clear()
        plan = _plans[key] = _Launch(x, weight, bias, sequence, initial, silu, y, dx)
    return plan


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """out (B, D, L), in x's layout or written where it is asked for, in x's dtype and of any strides.

    weight (D, W) and bias (D) are dense, seq_idx (B, L) is dense int32; no autograd.
    """
    out = empty_like_layout(x) if out is None else out
    if x.numel():
        plan = _plan(x, weight, bias, seq_idx, initial, silu, out, None)
        plan.run((x, weight, bias, seq_idx, initial, out, None, None, None), (x, out, None, initial))
    return out


class Gradients(NamedTuple):
    """dx: in x's dtype. dweight (D, W), dbias (D): fp32. dinitial (B, D, W-1): in the initial states' dtype."""

    dx: Tensor
    dweight: Tensor
    dbias: Tensor | None
    dinitial: Tensor | None


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    dx: Tensor | None = None,
) -> Gradients:
    """The gradients of `forward`. dout: of x's dtype, any strides. dx: where to write it, of any strides.

    The kernel leaves dweight and dbias of each span of time, which are added here: in the same order every time.
    """
    dim, width = weight.shape
    dx = empty_like_layout(x) if dx is None else dx
    dinitial = None if initial is None else x.new_empty(initial.shape, dtype=initial.dtype)
    if x.numel():
        plan = _plan(x, weight, bias, seq_idx, initial, silu, dout, dx)
        partial = x.new_empty(plan.spans, dim * (width + 1), dtype=torch.float32)
        plan.run((x, weight, bias, seq_idx, initial, dout, dx, partial, dinitial), (x, dout, dx, initial))
        sums = partial.sum(0) if plan.spans > 1 else partial[0]
    else:
        sums = x.new_zeros(dim * (width + 1), dtype=torch.float32)
        if dinitial is not None:
            dinitial.zero_()
    dweight, dbias = sums[: dim * width].view(dim, width), sums[dim * width :]
    return Gradients(dx, dweight, None if bias is None else dbias, dinitial)


def _kept(sequence: Tensor, history: int) -> Tensor:
    """Which of the last `history` inputs are of the last token's sequence: (B, 1, history)."""
    recent = sequence[:, -history:]
    missing = history - recent.shape[1]
    if missing:
        recent = torch.cat([sequence[:, :1].expand(-1, missing), recent], dim=1)
    return (recent == sequence[:, -1:])[:, None]


def _final_states(x: Tensor, history: int, sequence: Tensor | None, initial: Tensor | None) -> Tensor:
    final = x[..., -history:]
    missing = history - final.shape[-1]
    if missing:
        before = x.new_zeros(*x.shape[:2], history) if initial is None else initial.to(x.dtype)
        final = torch.cat([before[..., history - missing :], final], dim=-1)
    if sequence is not None and x.shape[-1]:
        return final * _kept(sequence, history)
    return final.clone()


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sequence: Tensor | None,
        initial: Tensor | None,
        silu: bool,
        with_final: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.silu = silu
        ctx.save_for_backward(x, weight, bias, sequence, initial)
        final = _final_states(x, weight.shape[1] - 1, sequence, initial) if with_final else None
        return forward(x, weight, bias, sequence, initial, silu), final

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, sequence, initial = ctx.saved_tensors
        dout = torch.zeros_like(x) if dout is None else dout
        g = backward(dout, x, weight, bias, sequence, initial, ctx.silu)
        if dfinal is not None:
            history = weight.shape[1] - 1
            recent = min(history, x.shape[-1])
            if sequence is not None and recent:
                dfinal = dfinal * _kept(sequence, history)
            g.dx[..., x.shape[-1] - recent :] += dfinal[..., history - recent :]
            if g.dinitial is not None:
                g.dinitial[..., recent:] += dfinal[..., : history - recent]
        dbias = None if bias is None or g.dbias is None else g.dbias.to(bias.dtype)
        return g.dx, g.dweight.to(weight.dtype), dbias, None, g.dinitial, None, None
