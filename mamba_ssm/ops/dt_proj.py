"""The projection of dt in a Mamba block: the door. Letters: R rank of dt, D channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.ops import backend

__all__ = ["dt_proj"]

FEWEST_TOKENS = 256  # with fewer, a matrix product costs no more than its launch


def dt_proj(dt: Tensor, weight: Tensor) -> Tensor:
    """delta (..., D) = dt (..., R) @ weight (D, R).T (arXiv 2312.00752, section 3.6), as F.linear gives it."""
    if dt.numel() >= FEWEST_TOKENS * weight.shape[1] and _without_gradients(dt, weight):
        from mamba_ssm.ops.cuda import dt_proj as cuda

        if cuda.takes(dt, weight) and backend.choose("selective_scan", dt.device, dt.dtype).backend == "cuda":
            return cuda.dt_proj(dt, weight)
    return F.linear(dt, weight)


def _without_gradients(dt: Tensor, weight: Tensor) -> bool:
    """Whether this call is on a GPU, wants no gradients, and takes dt as it is."""
    return (
        dt.is_cuda
        and not (torch.is_grad_enabled() and (dt.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cuda")
    )
