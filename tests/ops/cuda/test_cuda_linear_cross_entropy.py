"""Cross-entropy of a linear head on CUDA kernels, against the reference in float64."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from checks import TOLERANCE, check, rand
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops import backend
from mamba_ssm.ops import linear_cross_entropy as door
from mamba_ssm.ops.cuda import linear_cross_entropy as cuda
from mamba_ssm.ops.reference import linear_cross_entropy as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IGNORED = -100


@pytest.fixture(autouse=True)
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door's chunks go to the kernel, in several pieces."""
    monkeypatch.setattr(backend, "module", lambda op, x: cuda)
    monkeypatch.setattr(door, "LOGITS_BYTES", 1)
    torch.manual_seed(0)


def some_targets(rows: int, columns: int, device: str) -> Tensor:
    targets = torch.randint(columns, (rows,))
    targets[::5] = IGNORED
    targets[1], targets[2] = 0, columns - 1
    return targets.to(device)


def run_chunk(job: SimpleNamespace, logits: Tensor, targets: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """Losses and what the logits became, of logits that lie in rows of a multiple of 16 bytes."""
    rows, columns = logits.shape
    lies = torch.full((rows, -(-columns // 8) * 8), float("nan"), dtype=logits.dtype, device=logits.device)[:, :columns]
    lies.copy_(logits)
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    losses = torch.full((rows,), float("nan"), dtype=exact, device=logits.device)
    job.cross_entropy_(lies, targets, losses, IGNORED, gradient)
    return losses, lies


def check_chunk(rows: int, columns: int, dtype: torch.dtype, device: str, gradient: bool) -> None:
    logits = rand(rows, columns, dtype=dtype) * 4 + torch.linspace(-60, 60, rows, dtype=dtype)[:, None]
    logits, targets = logits.to(device), some_targets(rows, columns, device)
    losses, changed = run_chunk(cuda, logits, targets, gradient)
    wanted, gradients = run_chunk(reference, logits.double(), targets, gradient)
    torch.testing.assert_close(losses.double(), wanted, atol=1e-5, rtol=2e-6)
    if gradient:
        error = (changed.double() - gradients).norm() / gradients.norm()
        assert error < TOLERANCE[dtype]
        assert not changed[targets == IGNORED].any()
    else:
        assert torch.equal(changed, logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (6, 2053), (3, 20001)])
def test_a_chunk(device: str, dtype: torch.dtype, rows: int, columns: int) -> None:
    check_chunk(rows, columns, dtype, device, gradient=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_longer_than_the_registers(device: str, dtype: torch.dtype) -> None:
    check_chunk(3, 60013, dtype, device, gradient=True)


@pytest.mark.parametrize("columns", [13, 20001])
def test_without_gradients_the_logits_stay(device: str, columns: int) -> None:
    check_chunk(5, columns, torch.bfloat16, device, gradient=False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [50280, 128256, 262144])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_chunk_on_a_gpu(device: str, dtype: torch.dtype, columns: int, gradient: bool) -> None:
    check_chunk(301, columns, dtype, device, gradient)


def check_head(rows: int, width: int, columns: int, dtype: torch.dtype, device: str) -> None:
    scale = 2.0 ** -round(math.log2(width) / 2)  # logits of about 1, in numbers that dtype holds
    hidden, weight = (
        rand(rows, width, dtype=dtype, device=device),
        rand(columns, width, dtype=dtype, device=device) * scale,
    )
    targets = some_targets(rows, columns, device)

    def on(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda hidden, weight: function(hidden, weight, targets)

    # The logits are rounded to dtype, as F.linear rounds them, and so are the gradients: twice where the device cannot
    # add to fp32.
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    check(on(door.linear_cross_entropy), on(reference.linear_cross_entropy), (hidden, weight), tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_head(device: str, dtype: torch.dtype) -> None:
    check_head(300, 24, 77, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [50280, 50277])
def test_head_on_a_gpu(device: str, dtype: torch.dtype, columns: int) -> None:
    check_head(1000, 768, columns, dtype, device)


@pytest.mark.gpu
def test_no_more_than_a_chunk_of_logits_is_alive(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "LOGITS_BYTES", 32 << 20)
    hidden = torch.randn(8192, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50280, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    targets = some_targets(8192, 50280, device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    door.linear_cross_entropy(hidden, weight, targets).backward()
    gradients = 4 * weight.numel() + 2 * (hidden.numel() + weight.numel())
    assert torch.cuda.max_memory_allocated() - before < gradients + (48 << 20)


def test_extreme_logits(device: str) -> None:
    inf = float("inf")
    logits = torch.tensor([[-inf, 1.0, 2.0], [3e4, -3e4, 3e4], [-6e4, -6e4, -inf]], dtype=torch.float16, device=device)
    targets = torch.tensor([1, 1, 0], device=device)
    losses, changed = run_chunk(cuda, logits, targets, True)
    wanted, gradients = run_chunk(reference, logits.double(), targets, True)
    torch.testing.assert_close(losses.double(), wanted)
    torch.testing.assert_close(changed.double(), gradients, atol=1e-3, rtol=0)


def test_a_target_out_of_range_shows(device: str) -> None:
    losses, _ = run_chunk(cuda, torch.randn(3, 5, device=device), torch.tensor([5, 1, -3], device=device), True)
    assert losses.isnan().tolist() == [True, False, True]


def test_what_is_not_taken(device: str) -> None:
    with pytest.raises(BackendError, match="reference"):
        run_chunk(cuda, torch.randn(3, 8, device=device).double(), torch.tensor([1, 1, 1], device=device), True)
