"""Causal depthwise convolution over time, with state in and out: the door. More: ops/reference/causal_conv1d.py."""

from typing import Any

import torch
from torch import Tensor

from mamba_ssm.ops import backend


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """Convolve x (B, D, L) with weight (D, W): out (B, D, L), or (out, final_states (B, D, W-1))."""
    without = frozenset() if 2 <= weight.shape[1] <= 4 else frozenset({"cuda"})
    run = backend.module("causal_conv1d", x, without).causal_conv1d_fn
    return run(x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Continue a convolution by one token, or by some.

    Args:
        x: (B, D), or (B, D, L). weight: (D, W). bias: (D,).
        conv_state: (B, D, S) with S >= W-1, the last S inputs; shifted in place.
        activation: None, "silu" or "swish".
        cache_seqlens, conv_state_indices: of the original's signature, and not taken: NotImplementedError.

    Returns:
        out, of x's shape and dtype.
    """
    if cache_seqlens is not None or conv_state_indices is not None:
        raise NotImplementedError(
            "causal_conv1d_update keeps the last inputs in order and a state for each row: leave out cache_seqlens and "
            "conv_state_indices, and pass conv_state[indices]"
        )
    new = x.unsqueeze(-1) if x.dim() == 2 else x
    state = conv_state[..., conv_state.shape[-1] - (weight.shape[1] - 1) :]
    out = causal_conv1d_fn(new, weight, bias, initial_states=state, activation=activation)
    conv_state.copy_(torch.cat([conv_state, new.to(conv_state.dtype)], dim=-1)[..., new.shape[-1] :])
    return out.squeeze(-1) if x.dim() == 2 else out
