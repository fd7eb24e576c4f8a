"""The operators that compilers see in the place of the scan and the convolution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import laid_out
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

BATCH, DIM, LENGTH, STATE = 2, 4, 6, 3
SEQUENCES = torch.tensor([[0, 0, 0, 1, 1, 1], [4, 4, 4, 4, 7, -1]])


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def tokens(layout: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return laid_out(torch.randn(BATCH, DIM, LENGTH, dtype=dtype), layout).detach().requires_grad_()


def scan_inputs(layout: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias."""
    u, delta, z = (tokens(layout, dtype) for _ in range(3))
    A = (-torch.rand(DIM, STATE)).requires_grad_()
    B, C = (leaf(BATCH, STATE, LENGTH, dtype=dtype) for _ in range(2))
    return [u, delta, A, B, C, leaf(DIM), z, leaf(DIM)]


@pytest.mark.parametrize("layout", ["channel-first", "channel-last", "slice"])
def test_the_scan_keeps_all_that_pytorch_asks_of_an_operator(backend_name: str, layout: str) -> None:
    scan = torch.ops.mamba_ssm.selective_scan.default
    torch.library.opcheck(scan, (*scan_inputs(layout), True, leaf(BATCH, DIM, STATE), None))
    u, delta, A, B, C, *_ = scan_inputs(layout, torch.bfloat16)
    packed = None if backend_name == "triton" else SEQUENCES  # asked for by name, it takes none
    torch.library.opcheck(scan, (u, delta, A, B, C, None, None, None, False, None, packed))


@pytest.mark.parametrize("layout", ["channel-first", "channel-last", "slice"])
def test_the_convolution_keeps_all_that_pytorch_asks_of_an_operator(backend_name: str, layout: str) -> None:
    convolution = torch.ops.mamba_ssm.causal_conv1d.default
    initial = leaf(BATCH, DIM, 2)
    torch.library.opcheck(convolution, (tokens(layout), leaf(DIM, 3), leaf(DIM), SEQUENCES, initial, True, "silu"))
    half = tokens(layout, torch.bfloat16)
    torch.library.opcheck(convolution, (half, leaf(DIM, 3), None, None, None, False, None))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("trained", [(0,), (2, 5), (3, 8), range(9)])
def test_a_compiled_scan_has_the_gradients_that_are_asked_for(trained: tuple[int, ...]) -> None:
    inputs = [*scan_inputs("channel-last"), leaf(BATCH, DIM, STATE)]

    def run(scan: Callable[..., Any]) -> tuple[Tensor, ...]:
        given = [m.detach().requires_grad_(i in trained) for i, m in enumerate(inputs)]
        out, last = scan(*given[:8], True, True, given[8], SEQUENCES)
        (out.square().sum() + last.sum()).backward()
        return out, last, *(given[i].grad for i in trained)

    for got, expected in zip(run(compiled(selective_scan_fn)), run(selective_scan_fn), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_compiled_scan_may_be_used_for_its_state_alone() -> None:
    """And no state but its result: an output that nothing uses has no gradient."""
    inputs = scan_inputs("channel-first")
    for result in (0, 1):
        scan = compiled(lambda *inputs, result=result: selective_scan_fn(*inputs, True, True)[result])
        got = torch.autograd.grad(scan(*inputs).square().sum(), inputs[:4])
        expected = torch.autograd.grad(selective_scan_fn(*inputs, True, True)[result].square().sum(), inputs[:4])
        torch.testing.assert_close(got, expected)


def test_complex_A_and_no_tokens_compile_too() -> None:
    u, delta, A, *_ = scan_inputs("channel-first")
    A, B, C = torch.complex(A, A), *(torch.randn(BATCH, STATE, 2 * LENGTH) for _ in range(2))
    scan = compiled(selective_scan_fn)
    torch.testing.assert_close(scan(u, delta, A, B, C), selective_scan_fn(u, delta, A, B, C))
    empty = [m[..., :0] for m in (u, delta)], [m[..., :0] for m in (B, C)]
    state = torch.randn(BATCH, DIM, STATE)
    out, last = scan(*empty[0], A.real, *empty[1], return_last_state=True, initial_state=state)
    assert out.shape == (BATCH, DIM, 0)
    torch.testing.assert_close(last, state)
    # The reference returns the very state: an operator must not.
    with backend.use("reference"):
        scan = torch.ops.mamba_ssm.selective_scan.default
        torch.library.opcheck(
            scan, (*empty[0], A.real, *empty[1], None, None, None, False, state.requires_grad_(), None)
        )


def test_a_compiled_convolution_gives_its_state_where_it_is_asked_to() -> None:
    x, weight, place = tokens("channel-last").detach(), torch.randn(DIM, 3), torch.zeros(BATCH, DIM, 2)
    out, final = causal_conv1d_fn(x, weight, return_final_states=True)
    got, same = compiled(causal_conv1d_fn)(x, weight, return_final_states=True, final_states_out=place)
    torch.testing.assert_close(got, out)
    for state in (same, place):
        torch.testing.assert_close(state, final)


def test_the_back_end_is_chosen_when_a_compiled_op_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    choose = backend.module
    monkeypatch.setattr(backend, "module", lambda op, *rest: ran.append(choose(op, *rest)) or ran[-1])
    inputs = [m.detach() for m in scan_inputs("channel-last")]
    scan = compiled(selective_scan_fn)
    for name in ("reference", "cpu"):
        with backend.use(name):
            scan(*inputs)
        assert ran[-1].__name__ == f"mamba_ssm.ops.{name}.selective_scan"
