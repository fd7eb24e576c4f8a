"""The loss of search and reading. Windows overlap, so several places may be right: -log of the sum over these."""

from __future__ import annotations

from torch import Tensor


def any_of_loss(logits: Tensor, right: Tensor) -> Tensor:
    """Mean of -log(sum over the right of e^logit / sum over all of e^logit) over rows with a right place.

    logits (Q, W) and right (Q, W), bool -> a scalar; rows with nothing right count as nothing.
    """
    logits = logits.float()
    every = logits.logsumexp(-1)
    # A row with nothing right would be -inf, and its gradient NaN even where it is masked afterwards.
    has = right.any(-1)
    chosen = logits.masked_fill(~(right | ~has[:, None]), float("-inf")).logsumexp(-1)
    return ((every - chosen) * has).sum() / has.sum().clamp(min=1)
