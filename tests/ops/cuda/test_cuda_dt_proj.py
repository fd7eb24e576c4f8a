"""The projection of dt on CUDA kernels, against the product in float64."""

import pytest
import torch
from checks import rand
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops import backend
from mamba_ssm.ops import dt_proj as door
from mamba_ssm.ops.cuda import dt_proj as cuda

DTYPES = [torch.float16, torch.bfloat16]


def make(tokens: int, rank: int, dim: int, dtype: torch.dtype, device: str, gap: int = 0) -> tuple[Tensor, Tensor]:
    """dt (tokens, rank) with NaN in the `gap` numbers between its rows, and a weight (dim, rank)."""
    torch.manual_seed(0)
    wide = torch.full((tokens, rank + gap), float("nan"), dtype=dtype, device=device)
    wide[:, :rank] = rand(tokens, rank, dtype=dtype, device=device)
    return wide[:, :rank], (rand(dim, rank, device=device) / rank**0.5).to(dtype)


def check(got: Tensor, dt: Tensor, weight: Tensor) -> None:
    """Each number is the exact one, rounded once, but for what a sum in fp32 loses."""
    want = dt.double() @ weight.double().T
    assert got.shape == want.shape
    assert got.dtype == dt.dtype
    assert got.is_contiguous()
    size = dt.double().abs() @ weight.double().abs().T
    assert ((got.double() - want).abs() <= want.abs() * torch.finfo(dt.dtype).eps / 2 + size * 1e-6 + 6e-8).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "rank", "dim", "gap"),
    [
        (1, 8, 8, 0),
        (131, 8, 72, 16),
        (37, 16, 1, 0),
        (35, 24, 40, 8),
        (300, 48, 136, 32),
        (17, 56, 100, 32),
        (200, 64, 96, 0),
        (67, 80, 264, 8),
        (33, 104, 41, 24),
        (98, 160, 48, 32),
        (70, 176, 24, 0),
        (50, 248, 19, 8),
        (49, 256, 24, 512),
    ],
)
def test_values(tokens: int, rank: int, dim: int, gap: int, dtype: torch.dtype, device: str) -> None:
    dt, weight = make(tokens, rank, dim, dtype, device, gap)
    check(cuda.dt_proj(dt, weight), dt, weight)


@pytest.mark.parametrize(("tokens", "rank", "dim"), [(45, 48, 72), (21, 24, 37), (9, 160, 33)])
def test_nothing_is_written_around_the_output(tokens: int, rank: int, dim: int, device: str) -> None:
    dt, weight = make(tokens, rank, dim, torch.bfloat16, device, 8)
    around = torch.full((tokens * dim + 4096,), float("nan"), dtype=dt.dtype, device=device)
    out = around[2048:-2048].view(tokens, dim)
    cuda.project(dt, weight, out)
    check(out, dt, weight)
    assert around[:2048].isnan().all()
    assert around[-2048:].isnan().all()


def test_many_blocks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_cut", lambda rank: cuda._Cut(32, 2, 4, 16))
    cuda._plan.cache_clear()
    dt, weight = make(333, 40, 152, torch.float16, device, 8)
    check(cuda.dt_proj(dt, weight), dt, weight)
    cuda._plan.cache_clear()


def test_leading_dimensions(device: str) -> None:
    dt, weight = make(42, 16, 24, torch.float16, device, 8)
    flat = cuda.dt_proj(dt, weight)
    wide = dt.as_strided((2, 3, 7, 16), (21 * 24, 7 * 24, 24, 1))
    assert torch.equal(cuda.dt_proj(wide, weight), flat.view(2, 3, 7, 24))
    assert torch.equal(cuda.dt_proj(wide[1:, :1], weight), flat.view(2, 3, 7, 24)[1:, :1])
    assert cuda.dt_proj(dt[:0], weight).shape == (0, 24)
    assert cuda.dt_proj(dt, weight[:0]).shape == (42, 0)


def test_what_is_not_taken(device: str) -> None:
    dt, weight = make(24, 16, 24, torch.float16, device, 8)
    for bad in (
        (dt.float(), weight.float()),
        (dt, weight.bfloat16()),
        (dt[:, :8], weight),
        (dt[:, :12], weight[:, :12].contiguous()),
        (dt[:, 8:], weight[:, 8:]),
        (dt.contiguous().view(-1)[1:-15].view(-1, 16), weight),
        (dt.contiguous().t().contiguous().t(), weight),
        (dt.unflatten(0, (4, 6)).transpose(0, 1), weight),
        (dt.as_strided((20, 16), (20, 1)), weight),
        (dt[0], weight),
    ):
        assert not cuda.takes(*bad)
        with pytest.raises(BackendError, match="multiples of 8"):
            cuda.dt_proj(*bad)


def test_the_door_on_a_cpu_is_a_matrix_product() -> None:
    dt, weight = make(300, 16, 24, torch.bfloat16, "cpu")
    assert torch.equal(door.dt_proj(dt, weight), torch.nn.functional.linear(dt, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "rank", "dim"),
    [
        (131072, 48, 1536),
        (4099, 48, 1536),
        (100, 64, 2048),
        (8191, 96, 3072),
        (5000, 128, 4096),
        (8192, 160, 5120),
        (3001, 256, 1000),
        (1000, 40, 1001),
    ],
)
def test_models_sizes(tokens: int, rank: int, dim: int, dtype: torch.dtype, device: str) -> None:
    dt, weight = make(tokens, rank, dim, dtype, device, 32)
    got = cuda.dt_proj(dt, weight)
    for rows in range(0, tokens, 16384):
        part = slice(rows, rows + 16384)
        check(got[part], dt[part], weight)


@pytest.mark.gpu
def test_the_door(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dt, weight = make(512, 48, 96, torch.float16, device, 32)
    taken = []
    fast = cuda.dt_proj
    monkeypatch.setattr(cuda, "dt_proj", lambda *args: taken.append(args) or fast(*args))
    check(door.dt_proj(dt, weight), dt, weight)
    assert len(taken) == 1
    trained = weight.clone().requires_grad_()
    door.dt_proj(dt, trained).sum().backward()
    assert trained.grad is not None
    with torch.autocast("cuda", torch.bfloat16):
        assert door.dt_proj(dt, weight).dtype == torch.bfloat16
    with backend.use("reference"):
        door.dt_proj(dt, weight)
    door.dt_proj(dt[:255], weight)
    door.dt_proj(dt.float(), weight.float())
    assert len(taken) == 1
    with torch.no_grad():
        door.dt_proj(dt, trained)
    assert len(taken) == 2
