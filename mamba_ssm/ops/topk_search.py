"""Scores of the windows of a text against questions: the door. Shapes: see ops/reference/topk_search.py."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.reference.topk_search import half_window_maxima, pair_scores
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


def window_scores(
    query_vectors: Tensor, query_weights: Tensor, keys: Tensor, stride: int, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores (B, W) of windows of two half windows of `stride` tokens, and the maxima (B, M) of the last half window.

    With `before`, what the call for the text before this one returned second, the first window begins there.
    """
    wanted = _gradients_wanted(query_vectors, query_weights, keys, before)
    run = window_scores_ref if wanted else backend.module("topk_search", keys).window_scores
    return run(query_vectors, query_weights, keys, stride, before)


def window_scores_above(
    query_vectors: Tensor,
    query_weights: Tensor,
    keys: Tensor,
    stride: int,
    floor: Tensor,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`window_scores` where no match of a half window counts less than `floor` (B, M, H), H with that of `before`.

    Returns scores (B, W), what the floor added to each, and the maxima (B, M) of the last half window, without it.
    """
    wanted = _gradients_wanted(query_vectors, query_weights, keys, floor, before)
    run = window_scores_above_ref if wanted else backend.module("topk_search", keys).window_scores_above
    return run(query_vectors, query_weights, keys, stride, floor, before)


def _gradients_wanted(*inputs: Tensor | None) -> bool:
    """The fast ones have no backward; a caller who wants gradients gets the reference's."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
