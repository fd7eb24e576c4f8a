"""Causal depthwise convolution over time, with state in and out: the door. More: ops/reference/causal_conv1d.py."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.library import define_operator
from mamba_ssm.ops.reference.causal_conv1d import causal_conv1d_update as causal_conv1d_update_ref


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
    if torch.compiler.is_compiling():
        out, final = _operator(x, weight, bias, seq_idx, initial_states, return_final_states, activation)
        if not return_final_states:
            return out
        return out, final if final_states_out is None else final_states_out.copy_(final)
    run = _backend_for(x, weight)
    return run.causal_conv1d_fn(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation
    )


def _backend_for(x: Tensor, weight: Tensor) -> ModuleType:
    """The back-end that takes a convolution of these."""
    without = frozenset() if 2 <= weight.shape[1] <= 4 else frozenset({"cuda"})
    return backend.module("causal_conv1d", x, without)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    return_final_states: bool,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    options = (x, weight, bias, seq_idx, initial_states, return_final_states, None, activation)
    made = _backend_for(x, weight).causal_conv1d_fn(*options)
    return made if return_final_states else (made, x.new_empty(0))


def _fake_convolve(
    x: Tensor, weight: Tensor, bias: Any, seq_idx: Any, initial_states: Any, return_final_states: bool, activation: Any
) -> tuple[Tensor, Tensor]:
    final = x.new_empty(*x.shape[:2], weight.shape[1] - 1) if return_final_states else x.new_empty(0)
    return torch.empty_like(x), final


_operator = define_operator(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, Tensor? initial_states,"
    " bool return_final_states, str? activation) -> (Tensor, Tensor)",
    _convolve,
    _fake_convolve,
)


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
    inputs = (x, conv_state, weight, bias)
    wanted = torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in inputs)
    # The fast ones have no backward. The compiler makes one kernel of plain PyTorch, with what is around it.
    if wanted or torch.compiler.is_compiling():
        return causal_conv1d_update_ref(*inputs, activation)
    out: Tensor = _backend_for(x, weight).causal_conv1d_update(*inputs, activation)
    return out
