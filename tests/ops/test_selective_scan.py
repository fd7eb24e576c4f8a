import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref

BATCH, DIM, STATE = 2, 4, 3
any_split = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def make(length=11, groups=1, B="token", C="token", dtype=torch.float64, complex_A=False, batch=BATCH):
    """Inputs of every kind, as a dictionary of arguments."""

    def by_token(kind):
        if kind == "constant":
            return torch.randn(DIM, STATE, dtype=A.dtype)
        width = 2 * length if complex_A else length
        if kind == "group":
            return torch.randn(batch, groups, STATE, width, dtype=dtype)
        return torch.randn(batch, STATE, width, dtype=dtype)

    A = -torch.rand(DIM, STATE, dtype=torch.promote_types(dtype, torch.float32)) * 2
    if complex_A:
        A = torch.complex(A, torch.randn_like(A))
    u, delta, z = (torch.randn(batch, DIM, length, dtype=dtype) for _ in range(3))
    D, delta_bias = torch.randn(2, DIM, dtype=torch.promote_types(dtype, torch.float32)).unbind()
    h = torch.randn(batch, DIM, STATE, dtype=A.dtype)
    return {
        "u": u,
        "delta": delta,
        "A": A,
        "B": by_token(B),
        "C": by_token(C),
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
        "delta_softplus": True,
        "initial_state": h,
    }


def by_loops(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, initial_state=None):
    """The scan number by number, in float64."""

    def number(m, b, d, n, t):
        if m.ndim == 2:
            return m[d, n]
        m = m[b] if m.ndim == 3 else m[b, d // (DIM // m.shape[1])]
        return m[n, t] if A.dtype.kind != "c" else complex(m[n, 2 * t], m[n, 2 * t + 1])

    arrays = [
        None if m is None else m.detach().to(torch.promote_types(m.dtype, torch.float64)).numpy()
        for m in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    ]
    u, delta, A, B, C, D, z, delta_bias, initial_state = arrays
    out, last = np.zeros_like(u), np.zeros((u.shape[0], *A.shape), dtype=A.dtype)
    for b in range(u.shape[0]):
        for d in range(DIM):
            h = [0j if A.dtype.kind == "c" else 0.0] * STATE if initial_state is None else list(initial_state[b, d])
            for t in range(u.shape[2]):
                step = delta[b, d, t] + (0.0 if delta_bias is None else delta_bias[d])
                step = math.log1p(math.exp(step)) if delta_softplus else step
                y = 0.0
                for n in range(STATE):
                    h[n] = np.exp(step * A[d, n]) * h[n] + step * number(B, b, d, n, t) * u[b, d, t]
                    y += number(C, b, d, n, t) * h[n]
                y = 2 * y.real if A.dtype.kind == "c" else y
                y += 0.0 if D is None else D[d] * u[b, d, t]
                out[b, d, t] = y * (1.0 if z is None else z[b, d, t] / (1 + math.exp(-z[b, d, t])))
            last[b, d] = h
    return torch.from_numpy(out), torch.from_numpy(last)


def scan(**arguments):
    return selective_scan_fn(**arguments, return_last_state=True)


def close(got, expected, **tolerance):
    torch.testing.assert_close(got, expected, check_dtype=False, **tolerance)


@pytest.mark.parametrize(("B", "C"), [("token", "token"), ("constant", "token"), ("group", "constant")])
@pytest.mark.parametrize("complex_A", [False, True])
def test_equals_loops(backend_name: str, B: str, C: str, complex_A: bool) -> None:
    arguments = make(B=B, C=C, groups=2, complex_A=complex_A, dtype=torch.float32)
    for got, expected in zip(scan(**arguments), by_loops(**arguments), strict=True):
        close(got, expected.to(got.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left_out", ["D", "z", "delta_bias", "delta_softplus", "initial_state"])
def test_each_option_may_be_left_out(backend_name: str, left_out: str) -> None:
    arguments = make(dtype=torch.float32)
    del arguments[left_out]
    for got, expected in zip(scan(**arguments), by_loops(**arguments), strict=True):
        close(got, expected.float(), rtol=1e-4, atol=1e-5)
    assert isinstance(selective_scan_fn(**arguments), Tensor)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_share_B_and_C_among_neighbouring_channels(backend_name: str, groups: int) -> None:
    arguments = make(B="group", C="group", groups=groups, dtype=torch.float32)
    close(scan(**arguments)[0], by_loops(**arguments)[0].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_keeps_the_dtype_and_accumulates_in_fp32(backend_name: str, dtype: torch.dtype, bound: float) -> None:
    arguments = make(dtype=dtype, length=40)
    out, last = scan(**arguments)
    expected_out, expected_last = by_loops(**arguments)
    assert out.dtype == dtype
    assert last.dtype == torch.float32
    close(out, expected_out.to(dtype), rtol=bound, atol=bound)
    # The state never passes through the inputs' precision, so only fp32's rounding shows.
    close(last, expected_last.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("B", "C"), [("token", "token"), ("constant", "group"), ("group", "group")])
@pytest.mark.parametrize("length", [1, 5])
def test_gradients_are_the_derivatives(B: str, C: str, length: int) -> None:
    arguments = make(length=length, B=B, C=C, groups=2)
    names = [key for key, value in arguments.items() if isinstance(value, Tensor)]

    def run(*tensors):
        return scan(**{**arguments, **dict(zip(names, tensors, strict=True))})

    with backend.use("reference"):
        assert torch.autograd.gradcheck(run, [arguments[key].requires_grad_() for key in names])


def test_gradients_with_complex_A_are_the_derivatives() -> None:
    arguments = make(length=3, complex_A=True)
    inputs = [arguments[key].requires_grad_() for key in ("u", "delta", "A", "B", "C", "initial_state")]

    def run(u, delta, A, B, C, h):
        return scan(u=u, delta=delta, A=A, B=B, C=C, initial_state=h)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 70])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_back_end_has_the_reference_s_values_and_gradients(backend_name: str, length: int, groups: int) -> None:
    arguments = make(length=length, B="group", C="group", groups=groups, dtype=torch.float32, batch=5)
    tensors = [value.requires_grad_() for value in arguments.values() if isinstance(value, Tensor)]
    expected = selective_scan_ref(**arguments, return_last_state=True)
    weights = [torch.randn_like(m) for m in expected]
    got = scan(**arguments)
    with torch.no_grad():
        close(scan(**arguments), expected, rtol=1e-4, atol=1e-5)
    close(got, expected, rtol=1e-4, atol=1e-5)
    close(
        torch.autograd.grad(got, tensors, weights),
        torch.autograd.grad(expected, tensors, weights),
        rtol=2e-4,
        atol=2e-4,
    )


@any_split
@given(cuts=st.lists(st.integers(0, 20), max_size=4), grad=st.booleans())
def test_any_split_gives_the_same_result(backend_name: str, cuts: list[int], grad: bool) -> None:
    arguments = make(length=20, dtype=torch.float32)
    arguments["u"].requires_grad_(grad)
    whole, last = scan(**arguments)
    h, parts, edges = arguments["initial_state"], [], [0, *sorted(cuts), 20]
    for start, stop in itertools.pairwise(edges):
        piece = {key: arguments[key][..., start:stop] for key in ("u", "delta", "B", "C", "z")}
        part, h = scan(**{**arguments, **piece, "initial_state": h})
        parts.append(part)
    close(torch.cat(parts, dim=-1), whole)
    close(h, last)
    if grad:
        expected = torch.autograd.grad(whole.sum() + last.sum(), arguments["u"])
        close(torch.autograd.grad(torch.cat(parts, dim=-1).sum() + h.sum(), arguments["u"]), expected)


def test_inputs_may_have_any_strides(backend_name: str) -> None:
    arguments = make(dtype=torch.float32)
    expected = scan(**arguments)
    for key in ("u", "delta", "z", "B", "C"):
        wide = torch.randn(*arguments[key].shape[:1], arguments[key].shape[2] * 2, arguments[key].shape[1])
        strided = wide[:, ::2].transpose(1, 2)
        arguments[key] = strided.copy_(arguments[key])
    close(scan(**arguments), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_output_has_the_input_s_layout(channels_last: bool) -> None:
    arguments = make(dtype=torch.float32)
    if channels_last:
        arguments["u"] = arguments["u"].transpose(1, 2).contiguous().transpose(1, 2)
    with backend.use("cpu"), torch.no_grad():
        assert scan(**arguments)[0].stride() == arguments["u"].stride()
    arguments["u"].requires_grad_()
    with backend.use("cpu"):
        assert scan(**arguments)[0].stride() == arguments["u"].stride()


@pytest.mark.parametrize("grad", [False, True])
def test_empty_inputs(backend_name: str, grad: bool) -> None:
    arguments = make(length=0, dtype=torch.float32)
    arguments["initial_state"].requires_grad_(grad)
    out, last = scan(**arguments)
    assert out.shape == (BATCH, DIM, 0)
    close(last, arguments["initial_state"])
    out, last = scan(**make(batch=0, dtype=torch.float32))
    assert out.shape == (0, DIM, 11)
    assert last.shape == (0, DIM, STATE)


def test_growing_and_vanishing_states(backend_name: str) -> None:
    arguments = make(length=30, dtype=torch.float32)
    arguments["A"] = arguments["A"].abs() / 4
    close(scan(**arguments)[0], by_loops(**arguments)[0].float(), rtol=1e-3, atol=1e-4)
    arguments["A"] = torch.full((DIM, STATE), -1e4)
    out, _last = scan(**arguments)
    assert out.isfinite().all()
    close(out, by_loops(**arguments)[0].float(), rtol=1e-4, atol=1e-4)


def test_inputs_are_left_as_they_were(backend_name: str) -> None:
    arguments = make(dtype=torch.float32)
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
    scan(**arguments)
    for key, value in before.items():
        assert torch.equal(arguments[key], value), key


def test_autocast_does_not_lower_the_state_s_precision() -> None:
    arguments = make(dtype=torch.float32, length=40)
    arguments["u"].requires_grad_()
    expected = selective_scan_ref(**arguments, return_last_state=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(scan(**arguments), expected, rtol=1e-4, atol=1e-5)
