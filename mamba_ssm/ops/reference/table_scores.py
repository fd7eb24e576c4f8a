"""Late interaction with a text whose keys depend on nothing but the token, in plain PyTorch.

Letters: V vocabulary, M question tokens, L text tokens, H half windows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def table_scores(table: Tensor, ids: Tensor, stride: int) -> Tensor:
    """S_c = sum_j max_{i in c} table[ids_i, j] for each window c of two neighbouring half windows of `stride` tokens.

    MaxSim (Khattab & Zaharia 2020, arXiv 2004.12832), where q_j . k_i is looked up: as the centroid pass of PLAID
    (Santhanam et al. 2022, arXiv 2205.09707), with the vocabulary for centroids.

    Args:
        table: (V, M) fp32: what each token of the vocabulary says to each question token, times that one's weight.
        ids: (L,) int32, each from 0 to V - 1; L is a multiple of `stride`.

    Returns:
        scores (H - 1,) fp32.
    """
    maxima = table[ids].unflatten(0, (-1, stride)).amax(1)
    return torch.maximum(maxima[:-1], maxima[1:]).sum(1)
