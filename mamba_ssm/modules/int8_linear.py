"""Linear layers whose weights are int8 with a scale for each row: half of bf16's bytes to read for a token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_ssm.ops.reference.linear import dequantise

LARGEST = 127


class Int8Linear(nn.Module):
    """y = x W^T + b, row o of W being scale[o] times integers from -127 to 127, rounded to the nearest.

    ``weight`` (O, I) int8 and ``scale`` (O,), largest |W[o]| / 127, are buffers: there is no gradient for them.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        exact = linear.weight.detach().float()
        scale = exact.abs().amax(dim=1) / LARGEST
        steps = exact / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
        self.register_buffer("weight", steps.round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O), in x's dtype."""
        return F.linear(x, dequantise(self.weight, self.scale, x.dtype), self.bias)
