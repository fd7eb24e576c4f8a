"""Scores along a whole book."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mamba_ssm
from mamba_ssm.book import Engine, open_book
from mamba_ssm.book.rank import KEPT
from mamba_ssm.book.relevance import relevance
from mamba_ssm.book.source import FileSource
from mamba_ssm.errors import QuestionError

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Engine.load(tiny_model)


@pytest.fixture(scope="module")
def every_window(engine, book_path):
    return open_book(book_path, engine).relevance(QUESTION)


def test_every_window_of_a_short_book_is_there(engine, book_text, every_window):
    encoded = engine.tokenizer.encode(book_text)
    halves = -(-len(encoded.ids) // 32)
    assert every_window.positions.tolist() == [int(encoded.starts[32 * window]) for window in range(halves - 1)]


def test_the_best_windows_are_what_a_question_finds(engine, book_path, every_window):
    """The 32 passages of an answer are of the windows that are judged anew, without the white space around them."""
    best = every_window.positions[np.argsort(-every_window.scores, kind="stable")[: KEPT * 32]]
    starts = [passage.start for passage in open_book(book_path, engine).ask(QUESTION, passages=32).evidence]
    away = np.abs(np.array(starts)[:, None] - best).min(1)
    assert len(starts) == 32
    assert away.max() <= 2
    assert len(best) == KEPT * 32 < len(every_window.scores)


@settings(max_examples=20)
@given(bins=st.integers(1, 300), segments=st.integers(1, 40))
def test_bins_hold_their_best_window(engine, book_path, every_window, bins, segments):
    class Blocks(Engine):
        block_tokens = segments * engine.config.block

    other = Blocks(engine.model, engine.tokenizer, engine.name)
    positions, scores, marks = relevance(FileSource(book_path, other), other, QUESTION, bins)
    windows, width = len(every_window.scores), 1
    while -(-windows // width) > bins:
        width *= 2
    runs = [every_window.scores[i : i + width] for i in range(0, windows, width)]
    assert scores == pytest.approx([run.max() for run in runs], abs=1e-3)
    assert len(positions) == len(marks) == len(runs) <= bins
    at = np.searchsorted(every_window.positions, positions)
    assert (at // width).tolist() == list(range(len(runs)))
    assert every_window.scores[at] == pytest.approx(scores, abs=1e-3)


def test_every_window_has_its_section(book_text, every_window):
    headings = [(match.start(), match[1]) for match in re.finditer(r"# (Chapter \d)", book_text)]
    under = [[name for start, name in headings if start <= position][-1] for position in every_window.positions]
    assert [mark.section for mark in every_window.marks] == under


def test_a_saved_book_has_the_same_scores(engine, book_path, every_window):
    with mamba_ssm.read(book_path, engine, progress=False) as book:
        again = book.relevance(QUESTION)
    assert np.array_equal(again.positions, every_window.positions)
    assert again.scores == pytest.approx(every_window.scores, abs=1e-4)


@pytest.mark.parametrize("text", ["a", "Trees.", "One two three four five six seven eight nine ten. " * 5])
def test_a_book_shorter_than_a_window_or_little_longer(engine, tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text)
    positions, scores, marks = open_book(path, engine).relevance("What?")
    assert positions[0] == 0
    assert len(positions) == len(scores) == len(marks) == max(-(-len(engine.tokenizer.encode(text).ids) // 32) - 1, 1)


def test_what_cannot_be_asked(engine, book_path):
    with pytest.raises(QuestionError):
        open_book(book_path, engine).relevance(" ")
    with pytest.raises(ValueError, match="bins"):
        open_book(book_path, engine).relevance("Why?", bins=0)
