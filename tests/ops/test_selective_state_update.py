import itertools
import math

import pytest
import torch
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update, selective_state_update_ref

BATCH, HEADS, DIM, STATE, GROUPS = 2, 4, 3, 5, 2


def make(*heads: int, groups: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {
        "state": (BATCH, *heads, DIM, STATE),
        "x": (BATCH, *heads, DIM),
        "dt": (BATCH, *heads, DIM),
        "A": (*heads, DIM, STATE),
        "B": (BATCH, *groups, STATE),
        "C": (BATCH, *groups, STATE),
        "D": (*heads, DIM),
        "z": (BATCH, *heads, DIM),
        "dt_bias": (*heads, DIM),
    }
    return {name: torch.randn(shape).to(dtype if name in "xzBC" else torch.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("full", [False, True])
def test_heads_and_groups_equal_loops(backend_name: str, full: bool) -> None:
    made = make(HEADS, groups=(GROUPS,))
    if not full:
        made = {name: made[name] for name in ("state", "x", "dt", "A", "B", "C")}
    state, expected = made["state"].double(), torch.empty(BATCH, HEADS, DIM, dtype=torch.float64)
    for b, h, d in itertools.product(range(BATCH), range(HEADS), range(DIM)):
        step = made["dt"][b, h, d].item() + (made["dt_bias"][h, d].item() if full else 0)
        step = math.log1p(math.exp(step)) if full else step
        y, x = 0.0, made["x"][b, h, d].item()
        for n in range(STATE):
            decay = math.exp(step * made["A"][h, d, n].item())
            B, C = (made[name][b, h // (HEADS // GROUPS), n].item() for name in "BC")
            state[b, h, d, n] = decay * state[b, h, d, n] + step * B * x
            y += C * state[b, h, d, n].item()
        if full:
            gate = made["z"][b, h, d].item()
            y = (y + made["D"][h, d].item() * x) * gate / (1 + math.exp(-gate))
        expected[b, h, d] = y
    out = selective_state_update(**made, dt_softplus=full)
    torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made["state"], state.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_steps_equal_a_scan(backend_name: str, dtype: torch.dtype, bound: float) -> None:
    made, length = make(dtype=dtype), 6
    made["A"] = -made["A"].abs()
    u, delta, z = torch.randn(3, BATCH, DIM, length).to(dtype)
    B, C = torch.randn(2, BATCH, STATE, length).to(dtype)
    state, A, D, bias = made["state"], made["A"], made["D"], made["dt_bias"]
    expected, last = selective_scan_fn(u, delta, A, B, C, D, z, bias, True, True, state.clone())
    for t in range(length):
        out = selective_state_update(
            state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], bias, dt_softplus=True
        )
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected[..., t], rtol=bound, atol=bound)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_a_state_in_half_precision_keeps_its_dtype(backend_name: str) -> None:
    made = make()
    made["A"] = -made["A"].abs()
    half = {**made, "state": made["state"].half()}
    out, room = selective_state_update(**half), half["state"].data_ptr()
    torch.testing.assert_close(out, selective_state_update_ref(**made), rtol=1e-2, atol=1e-2)
    assert half["state"].dtype == torch.float16
    assert half["state"].data_ptr() == room
    torch.testing.assert_close(half["state"].float(), made["state"], rtol=1e-2, atol=1e-2)


def test_an_empty_batch(backend_name: str) -> None:
    made = {name: m[:0] if name not in ("A", "D", "dt_bias") else m for name, m in make().items()}
    assert selective_state_update(**made).shape == (0, DIM)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradients_are_the_derivatives(name: str) -> None:
    made = {key: m.double().requires_grad_() for key, m in make().items()}

    def run(state, *rest):
        state = state.clone()
        return selective_state_update(state, *rest, dt_softplus=True), state

    with backend.use(name):
        assert torch.autograd.gradcheck(run, list(made.values()))


def test_one_group_without_heads(backend_name: str) -> None:
    made = make()
    again = {**made, "state": made["state"].clone(), "B": made["B"][:, None], "C": made["C"][:, None]}
    torch.testing.assert_close(selective_state_update(**again), selective_state_update(**made))
