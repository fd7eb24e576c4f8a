"""Windows judged anew: what they match, and in what order they come."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mamba_ssm.book import Engine
from mamba_ssm.book.find import BEFORE, Finder, Found, Window
from mamba_ssm.book.rank import BEFORE_SHARE, OVERLAP, RARITY, rank, spread
from mamba_ssm.book.source import FileSource
from mamba_ssm.esi.module import Question
from mamba_ssm.esi.search import Query

STRIDE = 32
VOCABULARY = 10


@pytest.fixture(scope="module")
def engine():
    return Engine.load(device="cpu")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(" ".join(f"Farmer {i} sold {i * 7 % 91} geese in Zürich; rain fell." for i in range(400)), "utf-8")
    return path


def found_by(engine, path, questions):
    finder = Finder([engine.question(question).query for question in questions], 64, engine)
    for block, keys in FileSource(path, engine).blocks():
        finder.push(block, keys)
    return finder


def test_matches_are_those_of_a_loop_over_the_tokens(engine, book):
    question = "How many geese did farmer 77 sell?"
    finder = found_by(engine, book, [question])
    keys = torch.cat([keys.values() for _, keys in FileSource(book, engine).blocks()]).double()
    tokens = len(engine.tokenizer.encode(question).ids)
    similar = engine.question(question).query.vectors[0, :tokens].double() @ keys.T
    (windows,) = finder.found()
    assert len(windows) == 64
    for window, _, _, matches in windows:
        own = similar[:, window.first : window.first + 2 * STRIDE].amax(1)
        before = similar[:, max(window.first - BEFORE * STRIDE, 0) : window.first + 2 * STRIDE].amax(1)
        np.testing.assert_allclose(matches[:, :tokens], torch.stack([own, before]), atol=1e-5)
    ids = engine.tokenizer.encode(book.read_text("utf-8")).ids
    assert np.array_equal(finder.counts(), np.bincount(ids, minlength=engine.tokenizer.vocab_size))


def test_neither_other_questions_nor_the_size_of_blocks_change_a_match(engine, book):
    class Small(Engine):
        block_tokens = 2 * engine.config.block

    questions = ["How many geese did farmer 77 sell?", "Rain?", "Who sold geese in Zürich, and how many? " * 4]
    (alone,) = found_by(engine, book, questions[:1]).found()
    small = Small(engine.model, engine.tokenizer, engine.name)
    for finder in (found_by(engine, book, questions), found_by(small, book, questions)):
        together = finder.found()[0]
        assert [each.window.first for each in together] == [each.window.first for each in alone]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(other.matches, one.matches, atol=1e-5)


def question(*ids):
    tokens = torch.tensor([ids])
    weights = torch.full(tokens.shape, 1.0 / len(ids))
    return Question(tokens, tokens >= 0, torch.zeros(1, len(ids), 4), Query(torch.zeros(1, len(ids), 2), weights))


def window(first, own, before, gain=0.0):
    places = np.arange(first, first + 2 * STRIDE)
    empty = Window(
        first, slice(0, 2 * STRIDE), places.astype(np.int32), places, places + 1, "x" * 2 * STRIDE, None, None
    )
    matches = np.array([own, np.maximum(own, before)], np.float32)
    return Found(empty, float(np.mean(own)) + gain, gain, matches)


def order(question, found, counts):
    """The windows' first tokens, the best fit first."""
    ranked = rank("", question, found, counts, len(found))
    return [each.window.first for each in sorted(ranked, key=lambda each: -each.fit)]


def test_a_word_that_is_rare_in_the_text_weighs_more():
    counts = np.array([1, 500] + [100] * (VOCABULARY - 2))
    common, rare = window(0, [0.2, 1.0], [0.2, 1.0]), window(64, [0.9, 0.2], [0.9, 0.2])
    assert order(question(0, 1), [common, rare], counts) == [64, 0]
    assert order(question(0, 1), [common, rare], None) == [0, 64]


def test_a_word_before_a_window_counts_for_less():
    nowhere, before, inside = (
        window(64 * i, [0.5, own], [0.5, b]) for i, (own, b) in enumerate([(0, 0), (0, 1), (1, 1)])
    )
    assert order(question(0, 1), [nowhere, before, inside], None) == [128, 64, 0]


def test_fits_are_as_the_formula_says_and_of_the_size_of_scores():
    counts = np.array([3, 40] + [7] * (VOCABULARY - 2))
    found = [window(0, [0.3, 0.8], [0.6, 0.8], gain=0.25), window(64, [0.7, 0.1], [0.7, 0.9])]
    rarity = [np.log(1 + counts.sum() / (counts[token] + 0.5)) ** RARITY for token in (0, 1)]
    weights = np.array(rarity) / np.mean(rarity) / 2
    for got in rank("", question(0, 1), found, counts, 8):
        hit = next(each for each in found if each.window.first == got.window.first)
        own, before = hit.matches.astype(np.float64)
        assert got.fit == pytest.approx(
            weights @ (own + BEFORE_SHARE * before) / (1 + BEFORE_SHARE) + hit.gain, rel=1e-5
        )
        assert (got.score, got.gain) == (hit.score, hit.gain)
    same = window(0, [0.4, 0.4], [0.4, 0.4])
    assert rank("", question(0, 1), [same], counts, 8)[0].fit == pytest.approx(same.score, rel=1e-5)


def test_those_that_fit_best_come_in_the_order_of_score_and_fit_together():
    found = [
        window(64 * i, [own], [before]) for i, (own, before) in enumerate([(0.9, 0), (0.8, 0), (0.7, 0.7), (0.6, 1)])
    ]
    assert [each.window.first for each in rank("", question(3), found, None, 3)] == [0, 64, 192]
    same = [window(64 * i, [0.5], [0.5]) for i in range(5)]
    assert [each.window.first for each in rank("", question(3), same, None, 3)] == [0, 64, 128]
    assert rank("", question(3), [], None, 3) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("In Chapter 7, what is the code?", True),
        ("what does CHAPTER 7 say", True),
        ("In chapter 17, what is the code?", False),
        ("Which chapter has 7 codes?", False),
        ("", False),
    ],
)
def test_a_window_whose_heading_the_question_names_comes_first(text, named):
    best, under = window(0, [0.9], [0.9]), window(64, [0.1], [0.1])
    under = under._replace(window=replace(under.window, section="Chapter 7"))
    (first, second) = rank(text, question(3), [best, under], None, 2)
    assert (first.window.first == 64) == named
    gains = sorted([first.gain, second.gain])
    assert gains[0] == 0.0
    assert (gains[1] > 0) == named


def test_a_window_is_worth_less_for_each_better_one_that_it_overlaps():
    windows = [window(first, [1], [1]).window for first in (0, 32, 64, 200)]
    marks = [9.0, 8.0, 8.5, 8.0 - 1.5 * OVERLAP]
    ordered = spread(windows, marks)
    # 32 overlaps 0 and 64, which do not overlap each other.
    assert [number for number, _ in ordered] == [0, 2, 3, 1]
    assert dict(ordered) == {0: 9.0, 2: 8.5, 3: 8.0 - 1.5 * OVERLAP, 1: 8.0 - 2 * OVERLAP}
    assert [mark for _, mark in ordered] == sorted((mark for _, mark in ordered), reverse=True)


def test_windows_of_two_books_repeat_nothing():
    windows = [replace(window(32 * i, [1], [1]).window, book=book) for i, book in enumerate("abab")]
    assert [number for number, _ in spread(windows, [4.0, 3.0, 2.0, 1.0])] == [0, 1, 2, 3]
    assert spread([], []) == []
