"""The door's chunks against all logits at once, and these against loops."""

import math

import pytest
import torch
from torch import Tensor

from mamba_ssm.ops import linear_cross_entropy as door
from mamba_ssm.ops.linear_cross_entropy import linear_cross_entropy
from mamba_ssm.ops.reference import linear_cross_entropy as reference

T, M, V = 300, 7, 11


@pytest.fixture(params=[1, 1 << 28])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in several chunks, and in one."""
    monkeypatch.setattr(door, "LOGITS_BYTES", request.param)


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(V, (T,))
    targets[::3] = -100
    return torch.randn(T, M).to(dtype).requires_grad_(), torch.randn(V, M).to(dtype).requires_grad_(), targets


def test_the_specification_is_a_loop() -> None:
    hidden, weight, targets = make()
    total, count = 0.0, 0
    for h, target in zip(hidden.tolist(), targets.tolist(), strict=True):
        if target == -100:
            continue
        logits = [sum(a * b for a, b in zip(h, w, strict=True)) for w in weight.tolist()]
        total, count = total + math.log(sum(map(math.exp, logits))) - logits[target], count + 1
    assert reference.linear_cross_entropy(hidden, weight, targets).item() == pytest.approx(total / count)


def test_chunks_are_the_whole(chunks: None) -> None:
    hidden, weight, targets = make()
    loss = linear_cross_entropy(hidden, weight, targets)
    wanted = reference.linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(loss, wanted)
    got = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(got, torch.autograd.grad(3 * wanted, (hidden, weight)))
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets), wanted.detach())


def test_the_graph_may_be_kept() -> None:
    hidden, weight, targets = make()
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), first, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_what_needs_a_gradient_gets_one(chunks: None, wanted: int) -> None:
    hidden, weight, targets = make()
    expected = torch.autograd.grad(reference.linear_cross_entropy(hidden, weight, targets), (hidden, weight)[wanted])
    (weight, hidden)[wanted].requires_grad_(False)
    got = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight)[wanted])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_says_in_what_the_products_run(chunks: None, hidden_dtype: torch.dtype) -> None:
    hidden, weight, targets = make(torch.float32)
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
        wanted = reference.linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted)
    got, expected = (torch.autograd.grad(x, (hidden, weight)) for x in (loss, wanted))
    assert [g.dtype for g in got] == [hidden_dtype, torch.float32]
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=2e-2)


def test_memory_as_it_comes_does_not_show(chunks: None) -> None:
    hidden, weight, targets = (m.detach() for m in make(torch.bfloat16))
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new memory is full of NaN
    try:
        gradients = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(g.isfinite().all() for g in gradients)


def test_without_autocast_hidden_says_it() -> None:
    hidden, weight, targets = make(torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(half, weight, targets)
    torch.testing.assert_close(loss, reference.linear_cross_entropy(half, weight, targets))
    d_hidden, d_weight = torch.autograd.grad(loss, (half, weight))
    assert (d_hidden.dtype, d_weight.dtype) == (torch.bfloat16, torch.float32)


def test_another_target_may_be_ignored() -> None:
    hidden, weight, targets = make()
    targets = targets.clamp(min=0)
    loss = linear_cross_entropy(hidden, weight, targets, ignore_index=0)
    torch.testing.assert_close(loss, reference.linear_cross_entropy(hidden, weight, targets, ignore_index=0))


@pytest.mark.parametrize("rows", [0, T])
def test_no_target_that_counts(rows: int) -> None:
    hidden, weight, targets = make()
    hidden = hidden.detach()[:rows].requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets[:rows], -100))
    assert loss.isnan()
    d_hidden, d_weight = torch.autograd.grad(loss, (hidden, weight))
    assert not d_hidden.any()
    assert not d_weight.any()


@pytest.mark.parametrize(
    ("rows", "columns"), [(0, 9), (1, 9), (129, 50280), (32768, 50280), (8192, 262144), (5, 10**9)]
)
def test_chunks_are_even_and_keep_to_the_budget(rows: int, columns: int) -> None:
    chunk = door._rows_of_a_chunk(rows, 2 * columns)
    assert chunk % door.TILE == 0
    assert chunk == door.TILE or chunk * columns * 2 <= door.LOGITS_BYTES
    chunks = -(-rows // chunk)
    assert chunks * chunk - rows <= chunks * door.TILE
