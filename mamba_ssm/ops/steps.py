"""What back-ends need of the tensors of a one-token op: their shapes checked, and what a kernel's plan is kept by.

Letters: B batch, H heads, D channels (of a head), N state, G groups of heads, L length, W taps, S inputs that are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mamba_ssm.errors import BackendError

MOST_PLANS = 1024  # that are kept
Kind = tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...]]


def kind(x: Tensor | None) -> Kind | None:
    """All of a tensor but where it is. A plain tuple, for it is made of each tensor at each call."""
    return None if x is None else (x.dtype, x.device, x.shape, x.stride())


def without_numbers(kinds: tuple[Kind | None, ...]) -> list[Tensor | None]:
    """Tensors of these kinds, to be asked for shapes and strides.

    Raises BackendError for several devices, and for what is not fp32, fp16 or bf16.
    """
    given = [k for k in kinds if k is not None]
    for dtype, *_ in given:
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise BackendError(f"A step takes fp32, fp16 and bf16, not {dtype}: convert, or ask for the reference.")
    if len({device for _, device, *_ in given}) > 1:
        raise BackendError("A step takes tensors of one device: move them to that of x.")
    return [None if k is None else torch.empty_strided(k[2], k[3], dtype=k[0], device="meta") for k in kinds]


def check_convolution(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> None:
    """Raises ValueError where an argument of `causal_conv1d_update` does not fit the others."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is None, 'silu' or 'swish', not {activation!r}")
    batch, dim = x.shape[:2]
    _check("conv_state", conv_state, (batch, dim, max(conv_state.shape[-1], weight.shape[-1] - 1)))
    _check("weight", weight, (dim, weight.shape[-1]))
    if bias is not None:
        _check("bias", bias, (dim,))


def by_heads(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> tuple[Any, ...]:
    """The arguments of `selective_state_update` with heads and groups: one of each where there are none.

    Views: state (B, H, D, N), x, dt and z (B, H, D), A (H, D, N), B and C (B, G, N), D and dt_bias (H, D). Raises
    ValueError where one does not fit.
    """
    if state.dim() == 3:
        state, x, dt = (m.unsqueeze(1) for m in (state, x, dt))
        z = None if z is None else z.unsqueeze(1)
        A, D, dt_bias = (None if m is None else m.unsqueeze(0) for m in (A, D, dt_bias))  # type: ignore[assignment]
    B, C = (m.unsqueeze(1) if m.dim() == 2 else m for m in (B, C))
    batch, heads, dim, states = state.shape
    for name, m in (("x", x), ("dt", dt), ("z", z)):
        if m is not None:
            _check(name, m, (batch, heads, dim))
    for name, m in (("D", D), ("dt_bias", dt_bias)):
        if m is not None:
            _check(name, m, (heads, dim))
    _check("A", A, (heads, dim, states))
    for name, m in (("B", B), ("C", C)):
        _check(name, m, (batch, m.shape[1], states))
        if m.shape[1] == 0 or heads % m.shape[1]:
            raise ValueError(f"{name} has {m.shape[1]} groups, which do not share out {heads} heads")
    return state, x, dt, A, B, C, D, z, dt_bias


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} is {tuple(x.shape)}, and with the other arguments' sizes {shape} was expected")


def update_by(
    convolve: Callable[..., Any],
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
) -> Tensor:
    """`causal_conv1d_update` of a back-end whose convolution takes initial states and is all that it has."""
    check_convolution(x, conv_state, weight, bias, activation)
    new = x.unsqueeze(-1) if x.dim() == 2 else x
    kept = conv_state.shape[-1]
    # A copy, so a backward pass finds the inputs as they were.
    inputs = torch.cat([conv_state, new.to(conv_state.dtype)], dim=-1)
    before = inputs[..., kept - (weight.shape[1] - 1) : kept]
    out: Tensor = convolve(new, weight, bias, initial_states=before, activation=activation)
    conv_state.copy_(inputs[..., new.shape[-1] :])
    return out.view(x.shape)
