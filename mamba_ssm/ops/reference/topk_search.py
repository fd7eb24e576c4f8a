"""Late interaction between questions and a text in plain PyTorch.

Letters: B questions, M question tokens, L text tokens, R search width, H half windows, W windows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def half_window_maxima(query_vectors: Tensor, keys: Tensor, stride: int) -> Tensor:
    """Best match of each question token in each run of `stride` tokens.

    query_vectors (B, M, R); keys (B, L, R) or (L, R), shared by all questions, where L is a multiple of `stride`
    -> (B, M, L / stride), in keys' dtype.
    """
    return (query_vectors.to(keys.dtype) @ keys.mT).unflatten(-1, (-1, stride)).amax(-1)


def pair_scores(query_weights: Tensor, maxima: Tensor) -> Tensor:
    """Scores of windows of two neighbouring half windows: weights (B, M), maxima (B, M, ..., H) -> (B, ..., H - 1)."""
    pairs = torch.maximum(maxima[..., :-1], maxima[..., 1:])
    return torch.einsum("bm,bm...->b...", query_weights.to(pairs.dtype), pairs)


def window_scores(
    query_vectors: Tensor, query_weights: Tensor, keys: Tensor, stride: int, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_c = sum_j w_j max_{i in c} q_j . k_i, MaxSim (Khattab & Zaharia 2020, arXiv 2004.12832) with weights, for each
    window c of two neighbouring half windows.

    Args:
        query_vectors, query_weights: (B, M, R) and (B, M).
        keys: (L, R), shared by all questions, or (B, L, R); L is a multiple of `stride`.
        stride: tokens of a half window.
        before: (B, M), the maxima of the half window before the keys.

    Returns:
        scores (B, W), where W is L / stride, and one less without `before`; and the maxima (B, M) of the last half
        window. Both in keys' dtype.
    """
    return scores_of(half_window_maxima(query_vectors, keys, stride), query_weights, before)


def window_scores_above(
    query_vectors: Tensor,
    query_weights: Tensor,
    keys: Tensor,
    stride: int,
    floor: Tensor,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `window_scores`, but no match of a half window counts less than ``floor``.

    Args:
        floor: (B, M, H), -inf where there is none, of the keys' half windows and, first, of the one of `before`.

    Returns:
        scores (B, W), what the floor added to each (B, W), and the maxima (B, M) of the last half window, without it.
    """
    return scores_above(half_window_maxima(query_vectors, keys, stride), query_weights, floor, before)


def scores_of(maxima: Tensor, query_weights: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """`window_scores` of what `half_window_maxima` returns."""
    if before is not None:
        maxima = torch.cat([before.unsqueeze(-1), maxima], -1)
    return pair_scores(query_weights, maxima), maxima[..., -1]


def scores_above(
    maxima: Tensor, query_weights: Tensor, floor: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`window_scores_above` of what `half_window_maxima` returns."""
    if before is not None:
        maxima = torch.cat([before.unsqueeze(-1), maxima], -1)
    scores = pair_scores(query_weights, torch.maximum(maxima, floor.to(maxima.dtype)))
    return scores, scores - pair_scores(query_weights, maxima), maxima[..., -1]
