"""Cross-entropy of a linear head in plain PyTorch. Letters: T tokens, M width, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """The specification of `mamba_ssm.ops.linear_cross_entropy`, with all logits (T, V) at once."""
    logits = F.linear(hidden, weight.to(hidden.dtype))
    exact = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(exact), targets, ignore_index=ignore_index)


def cross_entropy_(logits: Tensor, targets: Tensor, losses: Tensor, ignore_index: int, gradient: bool) -> None:
    """Loss of each row of logits (T, V), and with `gradient` d loss / d logits = softmax - onehot in their place.

    targets (T,) int64; losses (T,), fp32 or fp64, is overwritten. Rows that are ignored have loss and gradient zero.
    """
    ignored = targets == ignore_index
    at = targets.masked_fill(ignored, 0).unsqueeze(1)
    log_p = logits.to(losses.dtype).log_softmax(-1)
    losses.copy_(-log_p.gather(1, at).squeeze(1).masked_fill_(ignored, 0))
    if gradient:
        p = log_p.exp_()
        p.scatter_add_(1, at, -torch.ones_like(at, dtype=p.dtype))
        logits.copy_(p.masked_fill_(ignored.unsqueeze(1), 0))
