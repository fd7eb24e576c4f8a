"""Layer norm and RMS norm with the residual stream added first, in plain PyTorch."""

import torch
from torch import Tensor


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise x + residual over the last dimension.

    LayerNorm: Ba et al. 2016, arXiv 1607.06450, equation 4. RMSNorm: Zhang & Sennrich 2019, arXiv 1910.07467,
    equation 4.

    Args:
        x, residual: (..., D). weight, bias: (D,).
        prenorm: also return the sum x + residual, the new residual stream.
        residual_in_fp32: without a residual, the stream starts in fp32; a residual that is given keeps its dtype.

    Returns:
        y (..., D) in x's dtype, or (y, residual). Statistics are in fp32, or in fp64 when x is.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    stream = x.to(work) if residual is None else x.to(work) + residual.to(work)
    centred = stream if is_rms_norm else stream - stream.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.to(work)
    if bias is not None:
        y = y + bias.to(work)
    out = y.to(x.dtype)
    if not prenorm:
        return out
    if residual is not None:
        return out, stream.to(residual.dtype)
    return out, stream if residual_in_fp32 else x
