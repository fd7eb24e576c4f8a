"""Scores of the windows of a text against questions: the door. Shapes: see ops/reference/topk_search.py.

Keys in int8 have a scale for each, ``scales`` (L,), and are shared by all questions. On a CPU they are multiplied as
they are: to write them down in fp32 first, and to read that, would take longer than the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.linear import linear
from mamba_ssm.ops.reference.linear import dequantise
from mamba_ssm.ops.reference.topk_search import half_window_maxima as half_window_maxima_ref
from mamba_ssm.ops.reference.topk_search import pair_scores, scores_above, scores_of
from mamba_ssm.ops.reference.topk_search import window_scores as window_scores_ref
from mamba_ssm.ops.reference.topk_search import window_scores_above as window_scores_above_ref

__all__ = [
    "half_window_maxima",
    "pair_scores",
    "window_scores",
    "window_scores_above",
    "window_scores_above_ref",
    "window_scores_ref",
]


def half_window_maxima(query_vectors: Tensor, keys: Tensor, stride: int, scales: Tensor | None = None) -> Tensor:
    """Best match of each question token in each run of `stride` tokens, (B, M, H)."""
    if scales is None:
        return half_window_maxima_ref(query_vectors, keys, stride)
    products = linear(query_vectors.flatten(0, 1), keys, scales.float()).unflatten(0, query_vectors.shape[:2])
    return products.unflatten(-1, (-1, stride)).amax(-1)


def window_scores(
    query_vectors: Tensor,
    query_weights: Tensor,
    keys: Tensor,
    stride: int,
    before: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (B, W) of windows of two half windows of `stride` tokens, and the maxima (B, M) of the last half window.

    With `before`, what the call for the text before this one returned second, the first window begins there.
    """
    if scales is not None and keys.device.type == "cpu":
        return scores_of(half_window_maxima(query_vectors, keys, stride, scales), query_weights, before)
    wanted = _gradients_wanted(query_vectors, query_weights, keys, before)
    run = window_scores_ref if wanted else backend.module("topk_search", keys).window_scores
    return run(query_vectors, query_weights, _floats(keys, scales), stride, before)


def window_scores_above(
    query_vectors: Tensor,
    query_weights: Tensor,
    keys: Tensor,
    stride: int,
    floor: Tensor,
    before: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`window_scores` where no match of a half window counts less than `floor` (B, M, H), H with that of `before`.

    Returns scores (B, W), what the floor added to each, and the maxima (B, M) of the last half window, without it.
    """
    if scales is not None and keys.device.type == "cpu":
        return scores_above(half_window_maxima(query_vectors, keys, stride, scales), query_weights, floor, before)
    wanted = _gradients_wanted(query_vectors, query_weights, keys, floor, before)
    run = window_scores_above_ref if wanted else backend.module("topk_search", keys).window_scores_above
    return run(query_vectors, query_weights, _floats(keys, scales), stride, floor, before)


def _floats(keys: Tensor, scales: Tensor | None) -> Tensor:
    return keys if scales is None else dequantise(keys, scales.float(), torch.float32)


def _gradients_wanted(*inputs: Tensor | None) -> bool:
    """The fast ones have no backward; a caller who wants gradients gets the reference's."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
