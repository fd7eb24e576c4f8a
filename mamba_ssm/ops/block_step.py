"""One token through a whole Mamba block: the door. Shapes: see ops/reference/block_step.py."""

from torch import Tensor

from mamba_ssm.ops import backend


def block_step(
    hidden: Tensor,
    residual: Tensor | None,
    conv_state: Tensor,
    ssm_state: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    eps: float = 1e-5,
    is_rms_norm: bool = True,
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Move both states on by one token, in place: what the block's mixer gives (B, M), and the next residual (B, M)."""
    return backend.module("block_step", hidden).block_step(
        hidden,
        residual,
        conv_state,
        ssm_state,
        norm_weight,
        norm_bias,
        in_proj_weight,
        in_proj_bias,
        conv_weight,
        conv_bias,
        x_proj_weight,
        dt_proj_weight,
        dt_proj_bias,
        A_log,
        D,
        out_proj_weight,
        out_proj_bias,
        eps,
        is_rms_norm,
        residual_in_fp32,
    )
