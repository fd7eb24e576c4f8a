"""Scores of windows through the door, against loops."""

import math

import pytest
import torch
from torch import Tensor

from mamba_ssm.ops import backend
from mamba_ssm.ops.topk_search import half_window_maxima, window_scores, window_scores_above

B, M, R, STRIDE = 2, 3, 8, 4


def make(halves: int, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    keys = torch.randn(*((B,) if own else ()), halves * STRIDE, R)
    return torch.randn(B, M, R), torch.rand(B, M), keys


def best_match(vector: Tensor, keys: Tensor) -> float:
    return max(sum(a * b for a, b in zip(vector.tolist(), key, strict=True)) for key in keys.tolist())


@pytest.mark.parametrize("own", [False, True])
def test_scores_are_loops(backend_name: str, own: bool) -> None:
    vectors, weights, keys = make(5, own)
    scores, last = window_scores(vectors, weights, keys, STRIDE)
    assert scores.shape == (B, 4)
    for b in range(B):
        text = keys[b] if own else keys
        for w in range(4):
            window = text[w * STRIDE : (w + 2) * STRIDE]
            expected = math.fsum(weights[b, j].item() * best_match(vectors[b, j], window) for j in range(M))
            assert scores[b, w].item() == pytest.approx(expected, abs=1e-5)
        expected_last = [best_match(vectors[b, j], text[-STRIDE:]) for j in range(M)]
        assert last[b].tolist() == pytest.approx(expected_last, abs=1e-5)


def test_any_cut_of_the_stream_is_the_whole(backend_name: str) -> None:
    vectors, weights, keys = make(7, own=False)
    whole, whole_last = window_scores(vectors, weights, keys, STRIDE)
    pieces, last = [], None
    for part in keys.split([STRIDE, 3 * STRIDE, 2 * STRIDE, STRIDE]):
        scores, last = window_scores(vectors, weights, part, STRIDE, last)
        pieces.append(scores)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(last, whole_last)


def test_no_match_counts_less_than_the_floor(backend_name: str) -> None:
    vectors, weights, keys = make(3, own=False)
    floor = torch.randn(B, M, 3) * R**0.5
    floor[0, :, 1] = float("-inf")
    scores, gains, _ = window_scores_above(vectors, weights, keys, STRIDE, floor)
    plain, _ = window_scores(vectors, weights, keys, STRIDE)
    for b in range(B):
        for w in range(2):
            window = keys[w * STRIDE : (w + 2) * STRIDE]
            matches = [max(best_match(vectors[b, j], window), *floor[b, j, w : w + 2].tolist()) for j in range(M)]
            expected = math.fsum(weights[b, j].item() * matches[j] for j in range(M))
            assert scores[b, w].item() == pytest.approx(expected, abs=1e-5)
            assert gains[b, w].item() == pytest.approx(expected - plain[b, w].item(), abs=1e-5)


@pytest.mark.parametrize("scale", [torch.float16, torch.float32])
def test_int8_keys_are_their_values(backend_name: str, scale: torch.dtype) -> None:
    vectors, weights, _ = make(0, own=False)
    codes = torch.randint(-127, 128, (7 * STRIDE, R), dtype=torch.int8)
    scales = (torch.rand(len(codes)) / 127).to(scale)
    values = codes.double() * scales.double()[:, None]
    before, floor = torch.randn(B, M), torch.randn(B, M, 8)
    exact = [each.double() for each in (vectors, weights)]
    wanted = window_scores(*exact, values, STRIDE, before.double())
    got = window_scores(vectors, weights, codes, STRIDE, before, scales)
    torch.testing.assert_close(got, wanted, check_dtype=False)
    above = window_scores_above(*exact, values, STRIDE, floor.double(), before.double())
    got_above = window_scores_above(vectors, weights, codes, STRIDE, floor, before, scales)
    torch.testing.assert_close(got_above, above, check_dtype=False, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        half_window_maxima(vectors, codes, STRIDE, scales),
        half_window_maxima(exact[0], values, STRIDE),
        check_dtype=False,
    )


def test_gradients_come_from_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fast_one(op: str, x: Tensor) -> None:
        raise AssertionError("there is no backward")

    monkeypatch.setattr(backend, "module", no_fast_one)
    vectors, weights, keys = (m.double().requires_grad_() for m in make(3, own=False))
    before = torch.randn(B, M, dtype=torch.float64, requires_grad=True)

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return window_scores(*inputs[:3], STRIDE, inputs[3])

    assert torch.autograd.gradcheck(run, (vectors, weights, keys, before))
