"""A matrix times vectors, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, I), weight (O, I) -> x weight^T (B, O) in x's dtype."""
    return F.linear(x, weight)
