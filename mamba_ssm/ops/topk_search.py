"""Scores of the windows of a text against questions: the door. Shapes: see ops/reference/topk_search.py."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.reference.topk_search import half_window_maxima, pair_scores
from mamba_ssm.ops.reference.topk_search import window_scores as window_scores_ref

__all__ = ["half_window_maxima", "pair_scores", "window_scores", "window_scores_ref"]


def window_scores(
    query_vectors: Tensor, query_weights: Tensor, keys: Tensor, stride: int, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores (B, W) of windows of two half windows of `stride` tokens, and the maxima (B, M) of the last half window.

    With `before`, what the call for the text before this one returned second, the first window begins there.
    """
    inputs = (query_vectors, query_weights, keys, before)
    # The fast ones have no backward; a caller who wants gradients gets the reference's.
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    run = window_scores_ref if wanted else backend.module("topk_search", keys).window_scores
    return run(query_vectors, query_weights, keys, stride, before)
