"""Cross-entropy of a linear head without the whole logits: the door, and the chunks that every back-end works on.

Letters: T tokens, M width, V vocabulary.

The gradient of the mean of -log softmax(W h)_target is (softmax - onehot) / count with respect to the logits. It needs
nothing of the layers above but the incoming scalar, so the forward pass makes it chunk by chunk, in the place of the
logits, and only its products with W and h stay (the idea of Hsu et al. 2024, arXiv 2410.10989).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_ssm.ops import backend

__all__ = ["linear_cross_entropy"]

# What the logits of a chunk may take. Every chunk reads and writes the fp32 gradient of the weight once, 4VM bytes each
# way, for 6 * rows * VM operations: at 2,500 rows that is a quarter of the time of its three products on an H100.
LOGITS_BYTES = 256 << 20
TILE = 128  # matrix products compute whole tiles of rows


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of softmax(hidden @ weight.T) over the targets that count.

    Args:
        hidden: (T, M).
        weight: (V, M), of any dtype: the products run in autocast's, or else in hidden's.
        targets: (T,), int64; those that are ignore_index count as nothing.

    Returns:
        An fp32 scalar (fp64 for fp64), NaN when no target counts. hidden and weight have gradients, once.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    # Asked here because forward() of an autograd function sees neither no_grad nor inference mode.
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, dtype)
    return _run(hidden.to(dtype), weight.to(dtype), targets, ignore_index, False, False).loss


class _Result(NamedTuple):
    """d_hidden (T, M) and d_weight (V, M), the latter in fp32, are those of the sum of the losses."""

    loss: Tensor
    counted: Tensor
    d_hidden: Tensor | None
    d_weight: Tensor | None


def _run(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, want_hidden: bool, want_weight: bool
) -> _Result:
    """hidden and weight of one dtype."""
    cross_entropy = backend.module("linear_cross_entropy", hidden).cross_entropy_
    (rows, width), columns, size = hidden.shape, len(weight), hidden.element_size()
    exact = torch.promote_types(hidden.dtype, torch.float32)
    losses = hidden.new_empty(rows, dtype=exact)
    d_hidden = torch.empty_like(hidden) if want_hidden else None
    make = torch.empty if rows else torch.zeros
    d_weight = make(columns, width, dtype=exact, device=weight.device) if want_weight else None
    padded = -(-columns * size // 16) * 16 // size  # so that each row starts where 16 bytes can be loaded
    chunk = _rows_of_a_chunk(rows, padded * size)
    buffer = hidden.new_empty(min(chunk, rows), padded)
    buffer[:, columns:] = 0  # products in bf16 on a CPU read between the rows, where 0 * NaN would be NaN
    targets = targets.contiguous()
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        logits = buffer[: len(hidden[part]), :columns]
        torch.mm(hidden[part], weight.T, out=logits)
        cross_entropy(logits, targets[part], losses[part], ignore_index, want_hidden or want_weight)
        if d_hidden is not None:
            torch.mm(logits, weight, out=d_hidden[part])
        if d_weight is not None:
            _add_product(d_weight, logits.T, hidden[part], first=start == 0)
    count = (targets != ignore_index).sum()
    return _Result(losses.sum() / count, count, d_hidden, d_weight)


def _rows_of_a_chunk(rows: int, bytes_of_a_row: int) -> int:
    """Even chunks of whole tiles, within LOGITS_BYTES unless a single tile is more."""
    most = max(1, LOGITS_BYTES // (TILE * bytes_of_a_row)) * TILE
    chunks = max(1, -(-rows // most))
    return max(1, -(-rows // (chunks * TILE))) * TILE


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b, or total = a @ b at first; total is fp32 where a and b are of half precision."""
    beta = 0 if first else 1
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    elif _adds_to_fp32(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


@cache
def _adds_to_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch adds products of half precision to fp32 unrounded: not on a CPU, and not before 2.8."""
    a, total = torch.zeros(16, 16, device=device, dtype=dtype), torch.zeros(16, 16, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dtype: torch.dtype
    ) -> Tensor:
        result = _run(hidden.to(dtype), weight.to(dtype), targets, ignore_index, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(hidden, weight, result.counted, result.d_hidden, result.d_weight)
        return result.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, count, d_hidden, d_weight = ctx.saved_tensors
        scale = (grad / count.clamp(min=1)).unsqueeze(0)  # a scalar would be rounded to d_hidden's dtype
        pairs = ((hidden, d_hidden), (weight, d_weight))
        scaled = [None if d is None else torch.mul(d, scale, out=torch.empty_like(x)) for x, d in pairs]
        return *scaled, None, None, None
