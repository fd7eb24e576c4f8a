"""Layer norm and RMS norm with the residual stream added first: the door. Shapes: see ops/reference/layer_norm.py."""

from typing import Any

import torch
from torch import Tensor, nn

from mamba_ssm.ops import backend
from mamba_ssm.ops.reference.layer_norm import layer_norm_fn as layer_norm_ref

__all__ = ["RMSNorm", "layer_norm_fn", "rms_norm_fn"]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """Normalise x + residual (..., D): y in x's dtype, or (y, x + residual) with prenorm."""
    # The compiler makes one kernel of the norm in plain PyTorch, with what is around it.
    compiling = torch.compiler.is_compiling()
    run = layer_norm_ref if compiling else backend.module("layer_norm", x).layer_norm_fn
    return run(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Any:
    """Divide x + residual (..., D) by its root mean square: y in x's dtype, or (y, x + residual) with prenorm."""
    return layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm=True)


class RMSNorm(nn.Module):
    """RMS norm over the last dimension with a learned scale, and no bias (arXiv 1910.07467)."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        """x, residual (..., D): y in x's dtype, or (y, x + residual) with prenorm."""
        return rms_norm_fn(x, self.weight, None, residual, prenorm, residual_in_fp32, self.eps)
