"""A matrix times a few vectors, without gradients: the door. Shapes: see ops/reference/linear.py."""

from torch import Tensor

from mamba_ssm.ops import backend


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """x (B, I), weight (O, I) -> x weight^T (B, O): the one product of a decoding step that is outside of a block."""
    return backend.module("linear", x).linear(x, weight, scale)
