"""The loss of search and reading. Windows overlap, so several places may be right: -log of the sum over these."""

from __future__ import annotations

from torch import Tensor


def any_of_loss(logits: Tensor, right: Tensor) -> Tensor:
    """Mean of -log(sum over the right of e^logit / sum over all of e^logit) over answers with a right place.

    logits (Q, W) and right (Q, G, W), bool, for each of up to G answers that are all to be found -> a scalar. An answer
    with nothing right counts as nothing.
    """
    logits = logits.float()
    every = logits.logsumexp(-1, keepdim=True)
    # An answer with nothing right would be -inf, and its gradient NaN even where it is masked afterwards.
    has = right.any(-1)
    chosen = logits[:, None].masked_fill(~(right | ~has[..., None]), float("-inf")).logsumexp(-1)
    return ((every - chosen) * has).sum() / has.sum().clamp(min=1)
