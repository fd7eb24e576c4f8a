"""Scores against loops, the k best against sorting everything, and any cut of the stream against the whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import CheckpointError
from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import EmbeddingSearcher, pad_question, segments
from mamba_ssm.esi.search import (
    EmbeddingSearch,
    Headings,
    Query,
    Search,
    StreamingSearch,
    TopK,
    half_window_maxima,
    window_scores,
)

STRIDE = 4


def random_query(batch: int, tokens: int, width: int, seed: int = 0) -> Query:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(batch, tokens, width, generator=generator), dim=-1)
    return Query(vectors, torch.rand(batch, tokens, generator=generator) * 5)


def random_keys(*shape: int, seed: int = 1) -> torch.Tensor:
    keys = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(keys, dim=-1)


def loop_score(query: Query, row: int, keys: torch.Tensor, start: int, window: int) -> float:
    """S_c = sum_j omega_j max_{i in c} q_j . k_i, one product at a time."""
    total = 0.0
    for vector, weight in zip(query.vectors[row].double(), query.weights[row].double(), strict=True):
        total += float(weight) * max(float(vector @ key) for key in keys[start : start + window].double())
    return total


def test_window_scores_are_a_double_loop() -> None:
    query, keys = random_query(2, 5, 8), random_keys(6 * STRIDE, 8)
    scores = window_scores(query, half_window_maxima(query, keys, STRIDE))
    assert scores.shape == (2, 5)
    expected = [[loop_score(query, b, keys, w * STRIDE, 2 * STRIDE) for w in range(5)] for b in range(2)]
    torch.testing.assert_close(scores.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_each_question_may_have_a_text_of_its_own() -> None:
    query, keys = random_query(2, 3, 8), random_keys(2, 4 * STRIDE, 8)
    scores = window_scores(query, half_window_maxima(query, keys, STRIDE))
    for b in range(2):
        expected = [loop_score(query, b, keys[b], w * STRIDE, 2 * STRIDE) for w in range(3)]
        assert scores[b].tolist() == pytest.approx(expected, abs=1e-5)


@st.composite
def scored_blocks(draw: st.DrawFn) -> list[list[float]]:
    """Scores with many ties, cut into blocks, some of them empty."""
    score = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])
    return draw(st.lists(st.lists(score, max_size=7), max_size=6))


@given(scored_blocks(), st.integers(1, 9))
def test_the_best_k_are_those_of_sorting_everything(blocks: list[list[float]], k: int) -> None:
    top, first = TopK(1, k), 0
    kept: list[object] = [None] * k  # what `merge` says moves along with the windows
    for block in blocks:
        starts = torch.arange(first, first + len(block))
        source = top.merge(torch.tensor([block]), starts)[0].tolist()
        pool = [*kept, *starts.tolist()]
        kept = [pool[place] for place in source]
        first += len(block)
    flat = [score for block in blocks for score in block]
    # Of equal scores, the earlier window comes first.
    best = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:k]
    missing = k - len(best)
    assert top.starts[0].tolist() == best + [-1] * missing
    assert top.scores[0].tolist() == [flat[i] for i in best] + [-math.inf] * missing
    assert kept == best + [None] * missing


def test_rows_keep_their_own_windows() -> None:
    top = TopK(2, 2)
    top.merge(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), torch.tensor([10, 20, 30]))
    assert top.starts.tolist() == [[30, 20], [10, 20]]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 12))
def test_any_cut_of_the_stream_finds_the_same(halves: list[int], k: int) -> None:
    query, keys = random_query(3, 4, 8), random_keys(sum(halves) * STRIDE, 8)
    whole, cut = StreamingSearch(query, k, STRIDE), StreamingSearch(query, k, STRIDE)
    whole.push(keys)
    for part in keys.split([n * STRIDE for n in halves]):
        cut.push(part)
    assert torch.equal(cut.top.starts, whole.top.starts)
    torch.testing.assert_close(cut.top.scores, whole.top.scores, atol=1e-5, rtol=0)
    found = whole.top.starts[0]
    n_windows = sum(halves) - 1
    assert (found >= 0).sum() == min(k, n_windows)
    for start, score in zip(found.tolist(), whole.top.scores[0].tolist(), strict=True):
        if start >= 0:
            assert start % STRIDE == 0
            assert score == pytest.approx(loop_score(query, 0, keys, start, 2 * STRIDE), abs=1e-5)


def test_equal_windows_come_in_the_order_of_the_text() -> None:
    query = random_query(1, 2, 8)
    keys = random_keys(1, 8).expand(5 * STRIDE, 8)
    for size in (STRIDE, 5 * STRIDE):
        search = StreamingSearch(query, 3, STRIDE)
        for part in keys.split(size):
            search.push(part)
        assert search.top.starts.tolist() == [[0, STRIDE, 2 * STRIDE]]


class TestHeadings:
    """Half windows under two headings, of three and of two tokens, or under none, 2."""

    @staticmethod
    def of(place: list[int]) -> Headings:
        return Headings(random_keys(5, 8, seed=5), torch.tensor([0, 0, 0, 1, 1]), torch.tensor(place), 2)

    def test_a_window_matches_as_well_as_its_halves_headings_do(self) -> None:
        query, keys, place = random_query(2, 4, 8), random_keys(4 * STRIDE, 8), [2, 0, 1, 1]
        headings = self.of(place)
        search = StreamingSearch(query, 3, STRIDE)
        search.push(keys, headings)
        for row in range(2):
            for start, score, gain in zip(
                *(x[row].tolist() for x in (search.top.starts, search.top.scores, search.gains)), strict=True
            ):
                above = [headings.keys[headings.title == p] for p in place[start // STRIDE : start // STRIDE + 2]]
                seen = torch.cat([keys[start : start + 2 * STRIDE], *above])
                assert score == pytest.approx(loop_score(query, row, seen, 0, len(seen)), abs=1e-5)
                assert gain == pytest.approx(score - loop_score(query, row, keys, start, 2 * STRIDE), abs=1e-5)

    @settings(max_examples=40)
    @given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8))
    def test_any_cut_of_the_stream_finds_the_same(self, places: list[list[int]]) -> None:
        halves = [len(part) for part in places]
        query, keys = random_query(3, 4, 8), random_keys(sum(halves) * STRIDE, 8)
        whole, cut = StreamingSearch(query, 4, STRIDE), StreamingSearch(query, 4, STRIDE)
        whole.push(keys, self.of([place for part in places for place in part]))
        for part, place in zip(keys.split([n * STRIDE for n in halves]), places, strict=True):
            cut.push(part, self.of(place) if min(place) < 2 else None)
        assert torch.equal(cut.top.starts, whole.top.starts)
        torch.testing.assert_close(cut.top.scores, whole.top.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(cut.gains, whole.gains, atol=1e-5, rtol=0)

    def test_no_heading_changes_no_bit(self) -> None:
        query, keys = random_query(3, 4, 8), random_keys(9 * STRIDE, 8)
        plain, under = StreamingSearch(query, 4, STRIDE), StreamingSearch(query, 4, STRIDE)
        plain.push(keys)
        under.push(keys, self.of([2] * 9))
        assert torch.equal(plain.top.scores, under.top.scores)
        assert torch.equal(plain.top.starts, under.top.starts)
        assert not plain.gains.any()
        assert not under.gains.any()


def test_the_search_remembers_as_much_after_a_long_text() -> None:
    search = StreamingSearch(random_query(2, 3, 8), 4, STRIDE)
    sizes = []
    for block in range(20):
        search.push(random_keys(6 * STRIDE, 8, seed=block))
        sizes.append(sum(t.numel() for t in [*vars(search).values(), *vars(search.top).values()] if torch.is_tensor(t)))
    assert len(set(sizes)) == 1


class TestTrainedSearch:
    def test_before_training_a_word_matches_itself_best(self) -> None:
        torch.manual_seed(0)
        search = Search(16, 8, 50)
        hidden = torch.randn(1, 5, 16)
        ids = torch.arange(1, 6)[None]
        query = search.question(hidden, ids, ids != 0)
        match = query.vectors[0] @ search.keys(hidden)[0].T
        torch.testing.assert_close(match.diagonal(), torch.ones(5), atol=1e-5, rtol=0)
        assert (match.argmax(1) == torch.arange(5)).all()

    def test_weights_are_a_softmax_over_the_tokens_that_count(self) -> None:
        torch.manual_seed(0)
        search = Search(16, 8, 50)
        with torch.no_grad():
            search.weight.weight.normal_()
            search.prior.weight.normal_()
        hidden, ids = torch.randn(1, 4, 16), torch.tensor([[7, 9, 11, 0]])
        weights = search.question(hidden, ids, ids != 0).weights[0].tolist()
        normed = search.norm(hidden)[0].detach()
        logits = [
            float(normed[j] @ search.weight.weight[0].detach() + search.prior.weight[i, 0].detach())
            for j, i in enumerate([7, 9, 11])
        ]
        total = sum(map(math.exp, logits))
        assert weights[:3] == pytest.approx([20.0 * math.exp(x) / total for x in logits], rel=1e-4)
        assert weights[3] == 0.0

    def test_what_stands_at_padding_does_not_matter(self) -> None:
        torch.manual_seed(0)
        search = Search(16, 8, 50)
        hidden, ids = torch.randn(1, 4, 16), torch.tensor([[7, 9, 0, 0]])
        other = hidden.clone()
        other[:, 2:] = 100.0
        keys = random_keys(4 * STRIDE, 8)
        one, two = (
            window_scores(q, half_window_maxima(q, keys, STRIDE))
            for q in (search.question(h, ids, ids != 0) for h in (hidden, other))
        )
        torch.testing.assert_close(one, two)

    def test_the_temperature_has_a_floor(self) -> None:
        search = Search(16, 8, 50)
        with torch.no_grad():
            search.log_scale.fill_(50.0)
        ids = torch.tensor([[1, 2]])
        assert search.question(torch.randn(1, 2, 16), ids, ids != 0).weights.sum().item() == pytest.approx(100.0)


class TestEmbeddingSearch:
    def test_an_exact_copy_of_the_question_scores_highest(self) -> None:
        torch.manual_seed(0)
        config = ESIConfig(segment=96, warmup=32, window=32)
        searcher = EmbeddingSearcher(torch.randn(500, 32), config)
        text = torch.randint(10, 500, (8 * config.block,))
        question = torch.tensor([[401, 77, 350, 12, 499]])
        text[215:220] = question[0]
        search = StreamingSearch(searcher.ask(question).query, 4, config.stride)
        search.push(searcher.segment_keys(segments(text, config)).flatten(0, 1))
        best = int(search.top.starts[0, 0])
        assert best <= 215
        assert best + config.window >= 220
        # Every weight times a cosine of one.
        assert search.top.scores[0, 0].item() == pytest.approx(EmbeddingSearch.SCALE, rel=1e-4)

    def test_rare_tokens_weigh_more_and_padding_nothing(self) -> None:
        search = EmbeddingSearch(torch.randn(500, 8))
        ids = torch.tensor([[3, 450, 0]])
        weights = search.question(ids, ids != 0).weights[0]
        assert weights[1] > weights[0] > 0
        assert weights[2] == 0
        assert weights.sum().item() == pytest.approx(EmbeddingSearch.SCALE)


def test_segments_overlap_by_the_warm_up() -> None:
    config = ESIConfig(segment=6, warmup=2, window=4)
    cut = segments(torch.arange(1, 13), config)
    assert cut.tolist() == [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [7, 8, 9, 10, 11, 12]]


def test_a_question_is_padded_and_must_have_tokens() -> None:
    ids, mask = pad_question(torch.tensor([[5, 6, 0], [5, 6, 7]]), 4)
    assert ids.tolist() == [[5, 6, 0, 0], [5, 6, 7, 0]]
    assert mask.tolist() == [[True, True, False, False], [True, True, True, False]]
    with pytest.raises(ValueError, match="no tokens"):
        pad_question(torch.tensor([[5], [0]]), 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 63},
        {"window": 0},
        {"segment": 250},
        {"segment": 64, "warmup": 64},
        {"segment": 4, "warmup": 8, "window": 2},  # less than nothing new in a segment
        {"segment": 80, "warmup": 16, "window": 128},  # a window that a block can't hold
        {"segment": 208, "warmup": 16, "window": 64},  # half a window that the warm-up can't hold
        {"d_read": 30, "n_heads": 4},
        {"top_k": 1.5},
        {"top_k": "8"},
        {"unheard_of": 1},
    ],
)
def test_sizes_that_cannot_be_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"esi|ESI"):
        ESIConfig.from_dict(wrong)
