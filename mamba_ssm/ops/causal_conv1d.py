"""Causal depthwise convolution over time, with state in and out: the door. More: ops/reference/causal_conv1d.py."""

from typing import Any

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
    run = backend.module("causal_conv1d", x).causal_conv1d_fn
    return run(x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Continue by x (B, D) or (B, D, L), shifting conv_state (B, D, >= W-1) in place: out, of x's shape."""
    return backend.module("causal_conv1d", x).causal_conv1d_update(x, conv_state, weight, bias, activation)
