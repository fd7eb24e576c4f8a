"""One-token ops by themselves against the reference in float64: makers of arguments, and ways for these to lie."""

from collections.abc import Callable
from typing import Any

import torch
from checks import rand
from torch import Tensor

from mamba_ssm.ops.reference.causal_conv1d import causal_conv1d_update
from mamba_ssm.ops.reference.selective_state_update import selective_state_update

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Relative error of the norm: fp32 sums, and results rounded once to half precision.
TOLERANCE = {FP32: 2e-6, FP16: 5e-4, BF16: 4e-3}
NAMES = ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias")


def make_state(
    batch: int,
    dim: int,
    states: int,
    heads: tuple[int, ...] = (),
    groups: tuple[int, ...] = (),
    dtype: torch.dtype = FP32,
    device: str = "cpu",
    softplus: bool = True,
    state: torch.dtype = FP32,
) -> dict[str, Tensor]:
    """Arguments of `selective_state_update`; weights in fp32, as transformers and our modules give them."""
    return {
        "state": rand(batch, *heads, dim, states, dtype=state, device=device),
        "x": rand(batch, *heads, dim, dtype=dtype, device=device),
        "dt": rand(batch, *heads, dim, dtype=dtype, device=device, scale=0.5, shift=-1.0 if softplus else 1.0),
        "A": -rand(*heads, dim, states, device=device).exp(),
        "B": rand(batch, *groups, states, dtype=dtype, device=device),
        "C": rand(batch, *groups, states, dtype=dtype, device=device),
        "D": rand(*heads, dim, device=device),
        "z": rand(batch, *heads, dim, dtype=dtype, device=device),
        "dt_bias": rand(*heads, dim, device=device),
    }


def check_state(update: Callable[..., Tensor], given: dict[str, Any], softplus: bool = True, steps: int = 2) -> None:
    """Some steps, each judged by itself: y, and the state."""
    for _ in range(steps):
        exact = {name: None if m is None else m.double() for name, m in given.items()}
        got = update(**given, dt_softplus=softplus)
        want = selective_state_update(**exact, dt_softplus=softplus)
        assert (got.dtype, got.shape) == (given["x"].dtype, given["x"].shape)
        for name, m, right in [("y", got, want), ("state", given["state"], exact["state"])]:
            assert torch.isfinite(m).all(), name
            error = (m.double() - right).norm() / right.norm()
            assert error < TOLERANCE[m.dtype], f"{name}: relative error {error:.1e}"


def tied(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Mamba-2 has it: one step size, rate and skip a head, expanded."""
    _, _, dim, states = given["state"].shape
    return {
        **given,
        "dt": given["dt"][..., :1].expand(-1, -1, dim),
        "A": given["A"][:, :1, :1].expand(-1, dim, states),
        "D": given["D"][:, :1].expand(-1, dim),
        "dt_bias": given["dt_bias"][:, :1].expand(-1, dim),
    }


def make_convolution(
    batch: int,
    dim: int,
    width: int = 4,
    kept: int = 4,
    length: int | None = None,
    dtype: torch.dtype = FP32,
    state: torch.dtype | None = None,
    weight: torch.dtype = FP32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, conv_state, weight, bias of `causal_conv1d_update`; without a length x is one token."""
    return (
        rand(batch, dim, *(() if length is None else (length,)), dtype=dtype, device=device),
        rand(batch, dim, kept, dtype=state or dtype, device=device),
        rand(dim, width, dtype=weight, device=device),
        rand(dim, dtype=weight, device=device),
    )


def check_convolution(
    update: Callable[..., Tensor],
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = "silu",
    steps: int = 2,
) -> None:
    for _ in range(steps):
        exact = [None if m is None else m.double() for m in (x, state, weight, bias)]
        got, want = update(x, state, weight, bias, activation), causal_conv1d_update(*exact, activation)
        assert (got.dtype, got.shape) == (x.dtype, x.shape)
        assert torch.isfinite(got).all()
        error = (got.double() - want).norm() / want.norm()
        assert error < TOLERANCE[x.dtype], f"relative error {error:.1e}"
        assert exact[1] is not None
        assert torch.equal(state, exact[1].to(state.dtype))


def inside(m: Tensor, spare: int = 3) -> Tensor:
    """A slice of a wider tensor, from an odd place on."""
    room = m.new_zeros([n + spare for n in m.shape])
    return room[tuple(slice(1, n + 1) for n in m.shape)].copy_(m)


def turned(m: Tensor) -> Tensor:
    return m.transpose(0, -1).contiguous().transpose(0, -1).clone(memory_format=torch.preserve_format)


def columns(m: Tensor) -> Tensor:
    return torch.stack([m, torch.zeros_like(m)], dim=-1)[..., 0]


LAYOUTS = {"inside": inside, "turned": turned, "columns": columns}
