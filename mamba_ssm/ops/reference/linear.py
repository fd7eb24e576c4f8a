"""A matrix times vectors, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """x (B, I), weight (O, I) -> x weight^T (B, O) in x's dtype; the rows of an int8 weight are times scale (O,)."""
    return F.linear(x, weight if scale is None else dequantise(weight, scale, x.dtype))


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 weight (O, I), each row times its number of scale (O,)."""
    return (weight * scale.unsqueeze(1)).to(dtype)
