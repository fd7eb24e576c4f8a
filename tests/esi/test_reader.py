"""Reading, pointing at answers, and which parameters learn from what."""

import math
from dataclasses import replace

import pytest
import torch
from small_esi import SIZES, small_model, tokens
from torch.nn import functional as F

from mamba_ssm.esi.injection import Injection
from mamba_ssm.esi.reader import FIT_SHARE, PAD, Memory
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

K, W = SIZES["top_k"], SIZES["window"]
INF = float("inf")


def read(model: MambaLMHeadModel, windows: torch.Tensor, scores: torch.Tensor, seed: int = 2) -> Memory:
    searcher = model.searcher()
    memory = searcher.read(searcher.ask(tokens(len(windows), 4, seed=seed)), windows, scores)
    assert memory is not None
    return memory


@pytest.fixture
def memory(model: MambaLMHeadModel) -> Memory:
    """Two rows of three windows; the second row's last window is cut short, and its middle one is missing."""
    windows = tokens(2, K, W)
    windows[1, 2, 5:] = PAD
    windows[1, 1] = PAD
    return read(model, windows, torch.tensor([[9.0, 7.0, 2.0], [8.0, -INF, 1.0]]))


def all_spans(model: MambaLMHeadModel, memory: Memory, row: int, longest: int) -> dict[tuple[int, int, int], float]:
    """The probability of every span, with loops."""
    first, last = (x[row].detach().double().softmax(-1) for x in model.esi.reader.span_logits(memory))
    return {
        (k, i, j): float(first[k * W + i] * last[k * W + j])
        for k in range(K)
        for i in range(W)
        for j in range(i, min(i + longest, W))
    }


class TestRanking:
    def test_is_the_best_places_of_a_window_and_how_well_it_fits(self, model: MambaLMHeadModel, memory: Memory) -> None:
        first, last = model.esi.reader.span_logits(memory)
        fits = torch.tensor([[3.0, -1.0, 0.5], [2.0, -INF, 7.0]])
        own = torch.zeros(2, K, W, dtype=torch.bool)
        own[..., 1 : W - 2] = True  # the rest are margins
        ranking = model.esi.reader.ranking(memory, fits, own)
        for row in range(2):
            for k in range(K):
                places = slice(k * W + 1, (k + 1) * W - 2)
                best = (max(first[row, places].tolist()) + max(last[row, places].tolist())) / 2
                assert ranking[row, k].item() == pytest.approx(best + FIT_SHARE * fits[row, k].item(), rel=1e-5)
        assert ranking[1, 1] == -INF  # where there is no window

    @pytest.mark.parametrize("gains", [None, torch.tensor([[0.0, 2.0, 9.0, 1.0, 3.0, 0.5]])])
    def test_answers_come_from_the_first_windows_and_the_highest_ranked(
        self, model: MambaLMHeadModel, gains: torch.Tensor | None
    ) -> None:
        """As if no others had been read: the first two of six, and the two that rank highest, one of them the first."""
        windows, scores = tokens(1, 6, W), torch.tensor([[9.0, 7.0, 2.0, 6.0, 5.0, 1.0]])
        reader, memory = model.esi.reader, replace(read(model, windows, scores), gains=gains)
        ranking = torch.tensor([[8.0, 1.0, 2.0, 3.0, 9.0, 4.0]])
        taken = [0, 1, 4]
        alone = read(model, windows[:, taken], scores[:, taken])
        alone = replace(alone, gains=None if gains is None else gains[:, taken])
        spans, nothing = reader.best_spans(reader.answering(memory, ranking, 2), n=9)
        expected, still_nothing = reader.best_spans(alone, n=9)
        assert spans.window.tolist() == [[taken[i] for i in expected.window[0].tolist()]]
        assert torch.equal(spans.first, expected.first)
        assert torch.equal(spans.last, expected.last)
        torch.testing.assert_close(spans.probability, expected.probability)
        torch.testing.assert_close(nothing, still_nothing)


def test_confidence_is_the_probability_until_it_is_calibrated(model: MambaLMHeadModel) -> None:
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    reader = model.esi.reader
    torch.testing.assert_close(reader.confidence(p), p, atol=1e-5, rtol=0)
    reader.calibration.copy_(torch.tensor([0.8, 0.9]))
    odds = (p / (1 - p)).clamp(1e-6, 1e6) ** 0.9 * math.exp(0.8)
    torch.testing.assert_close(reader.confidence(p), odds / (1 + odds), atol=1e-5, rtol=0)


def test_a_text_tells_where_its_best_window_reaches_the_least_score(model: MambaLMHeadModel) -> None:
    reader = model.esi.reader
    assert reader.tells(torch.tensor([-INF, -1e9]))  # until it is calibrated
    reader.least_score.fill_(3.0)
    assert reader.tells(torch.tensor([1.0, 3.0, -INF]))
    assert not reader.tells(torch.tensor([1.0, 2.9]))


class TestSpans:
    @pytest.mark.parametrize("longest", [1, 3, 24])
    def test_the_best_are_those_of_all(self, model: MambaLMHeadModel, memory: Memory, longest: int) -> None:
        spans, _ = model.esi.reader.best_spans(memory, n=6, max_tokens=longest)
        for row in range(2):
            every = all_spans(model, memory, row, longest)
            found = list(
                zip(*(x[row].tolist() for x in (spans.window, spans.first, spans.last)), strict=True),
            )
            probability = spans.probability[row].tolist()
            assert len(set(found)) == 6
            assert probability == pytest.approx([every[span] for span in found], rel=1e-4)
            assert probability == pytest.approx(sorted(every.values(), reverse=True)[:6], rel=1e-4)

    def test_with_no_answer_they_sum_to_at_most_one(self, model: MambaLMHeadModel, memory: Memory) -> None:
        spans, nothing = model.esi.reader.best_spans(memory, n=1000)
        total = spans.probability.nan_to_num(nan=INF).sum(1) + nothing
        assert (total <= 1 + 1e-5).all()
        assert (nothing > 0).all()

    def test_never_on_padding(self, model: MambaLMHeadModel, memory: Memory) -> None:
        spans, _ = model.esi.reader.best_spans(memory, n=1000)
        for row in range(2):
            for k, i, j, p in zip(
                *(x[row].tolist() for x in (spans.window, spans.first, spans.last, spans.probability)), strict=True
            ):
                if p > 0:
                    assert (memory.ids[row, k, i : j + 1] != PAD).all()
                    assert 0 <= j - i < 24

    def test_a_better_score_makes_a_window_likelier(self, model: MambaLMHeadModel) -> None:
        windows = tokens(1, 1, W).expand(1, 2, W)
        memory = read(model, windows, torch.tensor([[9.0, 9.0]]))
        apart = Memory(memory.ids, memory.states, torch.tensor([[9.0, 5.0]]))
        first, _ = model.esi.reader.span_logits(apart)
        assert first[0, :W].logsumexp(0) > first[0, W : 2 * W].logsumexp(0)

    def test_a_better_heading_makes_a_window_likelier_and_equal_ones_change_nothing(
        self, model: MambaLMHeadModel, memory: Memory
    ) -> None:
        reader = model.esi.reader
        plain, nothing = reader.best_spans(memory)
        alike, still_nothing = reader.best_spans(replace(memory, gains=torch.full_like(memory.scores, 3.0)))
        assert torch.equal(alike.probability, plain.probability)
        assert torch.equal(still_nothing, nothing)
        gains = torch.zeros_like(memory.scores)
        gains[:, 2] = 50.0
        assert reader.best_spans(replace(memory, gains=gains))[0].window.tolist() == [[2], [2]]


class TestReading:
    def test_a_window_is_read_alone_whatever_lies_beside_it(self, model: MambaLMHeadModel) -> None:
        windows, scores = tokens(1, K, W), torch.tensor([[9.0, 7.0, 2.0]])
        order = torch.tensor([2, 0, 1])
        one, two = read(model, windows, scores), read(model, windows[:, order], scores[:, order])
        torch.testing.assert_close(two.states, one.states[:, order], atol=1e-5, rtol=1e-4)

    def test_in_both_directions(self, model: MambaLMHeadModel) -> None:
        windows, scores = tokens(1, 1, W), torch.tensor([[9.0]])
        other = windows.clone()
        other[0, 0, -1] = windows[0, 0, -1] % 100 + 1
        difference = (read(model, other, scores).states - read(model, windows, scores).states).abs().amax(-1)
        assert (difference > 1e-5).all()

    def test_beside_the_question(self, model: MambaLMHeadModel) -> None:
        windows, scores = tokens(1, 1, W), torch.tensor([[9.0]])
        assert (read(model, windows, scores, 3).states - read(model, windows, scores, 2).states).abs().max() > 1e-3


class TestInjection:
    @pytest.fixture
    def injection(self) -> Injection:
        torch.manual_seed(0)
        injection = Injection(8, 6, 1)
        with torch.no_grad():
            injection.gate.fill_(0.5)
            injection.copy_gate.fill_(0.8)
        return injection

    @pytest.fixture
    def found(self) -> Memory:
        torch.manual_seed(1)
        ids = torch.tensor([[[3, 4, 3], [5, PAD, PAD]]])
        return Memory(ids, torch.randn(1, 2, 3, 6), torch.tensor([[2.0, 1.0]]))

    def test_windows_are_summed_by_their_scores(self, injection: Injection, found: Memory) -> None:
        """gate * W_o sum_c softmax_c(S_c + s_c) attend_c(x), window by window."""
        x = torch.randn(1, 1, 8)
        q = injection.query(injection.norm(x))[0, 0]
        summed, outputs = [], []
        for window, score in zip(found.states[0], found.scores[0], strict=True):
            k, v = injection.key_value(window).chunk(2, -1)
            logits = k @ q / math.sqrt(6)
            summed.append(score + logits.logsumexp(0))
            outputs.append(logits.softmax(0) @ v)
        weights = torch.stack(summed).softmax(0)
        by_hand = 0.5 * injection.out(weights @ torch.stack(outputs))
        torch.testing.assert_close(injection(x, found)[0, 0], by_hand, atol=1e-5, rtol=1e-4)

    def test_copying_raises_retrieved_tokens_alone(self, injection: Injection, found: Memory) -> None:
        x, logits = torch.randn(1, 2, 8), torch.randn(1, 2, 7)
        raised = injection.copy(logits, x, found) - logits
        pointer = injection.pointer(x)[0] @ found.states.flatten(1, 2)[0].T / math.sqrt(6)
        for t in range(2):
            mass = [float((pointer[t, i] + (0.0 if i < 3 else -1.0)).exp().detach()) for i in range(4)]
            by_hand = [0, 0, 0, math.log(1 + mass[0] + mass[2]), math.log(1 + mass[1]), math.log(1 + mass[3]), 0]
            assert raised[0, t].tolist() == pytest.approx([0.8 * b for b in by_hand], abs=1e-5)

    def test_closed_gates_add_nothing(self, found: Memory) -> None:
        fresh = Injection(8, 6, 1)
        x, logits = torch.randn(1, 2, 8), torch.randn(1, 2, 7)
        assert not fresh(x, found).any()
        assert torch.equal(fresh.copy(logits, x, found), logits)


def test_gradients_reach_search_reader_and_injection(model: MambaLMHeadModel) -> None:
    block = SIZES["segment"] - SIZES["warmup"]
    ids, question = tokens(2, 4 * block), tokens(2, 4, seed=2)
    F.cross_entropy(model(ids, question).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    unused = {"reader.span.weight", "reader.span.bias", "reader.score_weight", "reader.no_answer"}
    for name, parameter in model.esi.named_parameters():
        if name in unused:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_gradients_of_the_spans_are_finite_where_windows_are_missing(model: MambaLMHeadModel) -> None:
    windows = tokens(1, K, W)
    windows[0, 1:] = PAD
    memory = read(model, windows, torch.tensor([[8.0, -INF, -INF]]))
    first, last = model.esi.reader.span_logits(memory)
    (first.log_softmax(-1)[0, 3] + last.log_softmax(-1)[0, 4]).neg().backward()
    for name, parameter in model.esi.reader.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_with_closed_gates_the_gates_alone_learn() -> None:
    model = small_model(gates=0.0)
    ids, question = tokens(1, 64), tokens(1, 4, seed=2)
    model(ids, question).logits.square().sum().backward()
    assert model.esi.injection.gate.grad.abs() > 0
    assert model.esi.injection.copy_gate.grad.abs() > 0
    assert not model.esi.search.key.weight.grad.any()
