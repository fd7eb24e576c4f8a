"""Scores of windows on CUDA kernels, against the reference in float64."""

import pytest
import torch
from checks import rand
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import topk_search as cuda
from mamba_ssm.ops.cuda.topk_search import window_scores, window_scores_above
from mamba_ssm.ops.reference import topk_search as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(
    questions: int,
    tokens: int,
    halves: int,
    width: int,
    stride: int,
    dtype: torch.dtype,
    device: str,
    own: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors, weights of which the last is padding's, keys, and the maxima of a half window before them."""
    weights = torch.rand(questions, tokens)
    weights[:, -1] = 0
    keys = rand(*((questions,) if own else ()), halves * stride, width, dtype=dtype, device=device)
    vectors = rand(questions, tokens, width, dtype=dtype, device=device).float()
    return vectors, weights.to(device), keys, torch.randn(questions, tokens).to(device) * width**0.5


def check(vectors: Tensor, weights: Tensor, keys: Tensor, stride: int, before: Tensor | None) -> None:
    scores, last = window_scores(vectors, weights, keys, stride, before)
    exact = None if before is None else before.double()
    wanted, wanted_last = reference.window_scores(vectors.double(), weights.double(), keys.double(), stride, exact)
    assert scores.dtype == last.dtype == torch.float32
    assert scores.shape == wanted.shape
    # Tensor cores cut off what they add in fp32, instead of rounding it.
    tolerance = 1e-5 if keys.is_cuda else 2e-6
    for got, want in ((scores, wanted), (last, wanted_last)):
        assert torch.isfinite(got).all()
        assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_scores(device: str, dtype: torch.dtype, own: bool, continued: bool) -> None:
    vectors, weights, keys, before = make(2, 5, 6, 48, 32, dtype, device, own)
    check(vectors, weights, keys, 32, before if continued else None)


@pytest.mark.parametrize(
    ("questions", "tokens", "halves", "width", "stride"),
    [(1, 1, 1, 16, 32), (1, 33, 2, 64, 32), (3, 70, 3, 20, 32), (5, 2, 9, 16, 4), (1, 3, 4, 10, 40), (1, 9, 11, 16, 1)],
)
def test_any_sizes(device: str, questions: int, tokens: int, halves: int, width: int, stride: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        vectors, weights, keys, before = make(questions, tokens, halves, width, stride, dtype, device)
        check(vectors, weights, keys, stride, None if halves > 1 else before)


@pytest.mark.parametrize("per_multiprocessor", [1, 2, 12])
def test_ranges_do_not_change_a_score(device: str, monkeypatch: pytest.MonkeyPatch, per_multiprocessor: int) -> None:
    vectors, weights, keys, before = make(1, 7, 40, 16, 8, torch.bfloat16, device)
    wanted = window_scores(vectors, weights, keys, 8, before)
    monkeypatch.setattr(cuda, "multiprocessors", lambda _: 1)
    monkeypatch.setattr(cuda, "WARPS_OF_A_MULTIPROCESSOR", {2: per_multiprocessor})
    for got, want in zip(window_scores(vectors, weights, keys, 8, before), wanted, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize(("tokens", "halves", "stride"), [(5, 6, 32), (70, 3, 32), (3, 9, 4), (9, 2, 40)])
def test_scores_above_a_floor(
    device: str, dtype: torch.dtype, continued: bool, tokens: int, halves: int, stride: int
) -> None:
    vectors, weights, keys, maxima = make(2, tokens, halves, 48, stride, dtype, device)
    before = maxima if continued else None
    floor = (torch.randn(2, tokens, halves + continued) * 48**0.5).to(device)
    floor[:, :, ::3] = float("-inf")
    got = window_scores_above(vectors, weights, keys, stride, floor, before)
    exact = [x.double() for x in (vectors, weights, keys, floor)]
    wanted = reference.window_scores_above(*exact[:3], stride, exact[3], maxima.double() if continued else None)
    tolerance = 1e-5 if keys.is_cuda else 2e-6
    for part, want in zip(got, wanted, strict=True):
        assert part.shape == want.shape
        assert (part.double() - want).norm() <= tolerance * wanted[0].norm()


def test_a_floor_below_all_changes_no_bit(device: str) -> None:
    vectors, weights, keys, before = make(2, 7, 9, 16, 8, torch.float32, device)
    scores, gains, last = window_scores_above(
        vectors, weights, keys, 8, torch.full((2, 7, 10), -1e9).to(device), before
    )
    plain, plain_last = window_scores(vectors, weights, keys, 8, before)
    assert torch.equal(scores, plain)
    assert torch.equal(last, plain_last)
    assert not gains.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_cut_of_the_stream_is_the_same(device: str, dtype: torch.dtype) -> None:
    vectors, weights, keys, _ = make(2, 6, 9, 32, 8, dtype, device)
    whole, whole_last = window_scores(vectors, weights, keys, 8)
    pieces, last = [], None
    for part in keys.split([8, 24, 8, 32]):
        scores, last = window_scores(vectors, weights, part, 8, last)
        pieces.append(scores)
    assert torch.equal(torch.cat(pieces, 1), whole)
    assert torch.equal(last, whole_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_may_lie_anyhow(device: str, dtype: torch.dtype) -> None:
    vectors, weights, keys, _ = make(2, 3, 3, 24, 8, dtype, device)
    wanted, _ = window_scores(vectors, weights, keys, 8)
    wide = torch.cat([keys, keys], -1)
    for same in (wide[:, :24], wide[:, 24:], keys.t().contiguous().t(), torch.cat([keys[:, :1], keys], -1)[:, 1:]):
        assert torch.equal(window_scores(vectors, weights, same, 8)[0], wanted)
    assert torch.equal(window_scores(vectors, weights, keys.expand(2, -1, -1), 8)[0], wanted)


def test_what_is_not_taken(device: str) -> None:
    vectors, weights, keys, _ = make(1, 3, 2, 16, 8, torch.float32, device)
    with pytest.raises(BackendError, match="float64"):
        window_scores(vectors, weights, keys.double(), 8)
    with pytest.raises(BackendError, match="2048"):
        window_scores(vectors[:, :1].expand(-1, 3000, -1), weights, keys, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("questions", "tokens", "halves", "width", "own"),
    [(1, 32, 4000, 128, False), (16, 27, 501, 128, False), (3, 512, 77, 256, True), (2, 100, 300, 768, False)],
)
def test_on_a_gpu(
    device: str, dtype: torch.dtype, questions: int, tokens: int, halves: int, width: int, own: bool
) -> None:
    vectors, weights, keys, before = make(questions, tokens, halves, width, 32, dtype, device, own)
    check(vectors, weights, keys, 32, before)
    check(vectors, weights, keys, 32, None)
