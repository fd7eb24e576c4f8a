"""One token through a whole Mamba block, in plain PyTorch.

Letters: B batch, M model width, D inner channels, N state, W width of the convolution, R rank of delta.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.ops.reference.causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.reference.layer_norm import layer_norm_fn
from mamba_ssm.ops.reference.selective_state_update import selective_state_update


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
    """hidden + residual, normalised, through the mixer (Gu & Dao 2023, arXiv 2312.00752, figure 3), continuing states.

    Args:
        hidden: (B, M). residual: (B, M), or None before the first block.
        conv_state: (B, D, W), the last inputs of the convolution; ssm_state: (B, D, N), fp32. Updated in place; both
            may be rows of larger tensors.
        norm_weight, norm_bias: (M,). eps, is_rms_norm, residual_in_fp32: as in `layer_norm_fn`.
        in_proj_weight: (2D, M). conv_weight: (D, W). x_proj_weight: (R + 2N, D). dt_proj_weight: (D, R).
        out_proj_weight: (M, D). All in hidden's dtype, as are their biases.
        A_log: (D, N), A = -exp(A_log). D: (D,).

    Returns:
        The mixer's output (B, M) in hidden's dtype, and hidden + residual, the next residual.
    """
    normed, stream = layer_norm_fn(hidden, norm_weight, norm_bias, residual, eps, True, residual_in_fp32, is_rms_norm)
    x, z = F.linear(normed, in_proj_weight, in_proj_bias).chunk(2, dim=-1)
    new = x.unsqueeze(-1)
    mixed = causal_conv1d_fn(new, conv_weight, conv_bias, initial_states=conv_state[..., 1:], activation="silu")
    assert isinstance(mixed, Tensor)
    x = mixed.squeeze(-1)
    conv_state.copy_(torch.cat([conv_state[..., 1:], new.to(conv_state.dtype)], dim=-1))
    states = A_log.shape[1]
    rank = x_proj_weight.shape[0] - 2 * states
    dt, B, C = F.linear(x, x_proj_weight).split([rank, states, states], dim=-1)
    dt = F.linear(dt, dt_proj_weight)
    A = -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())
    y = selective_state_update(ssm_state, x, dt, A, B, C, D, z, dt_proj_bias, dt_softplus=True)
    return F.linear(y, out_proj_weight, out_proj_bias), stream
