"""Judge anew the windows that a search found, when all of the text is known.

A window's score knows the window alone, and how rare a word of the question is in general. How rare it is in this text
says more: the title of a book stands on each of its pages. And a text names once what it goes on to speak of, so a word
counts, for less, where it stands before the window. Where a question names the heading that a window stands under, that
window is asked for: as a match of words, "Chapter 7" is hardly more than "Chapter 3" beside some 7.

Shapes: K windows, M question tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.book.find import Found, Window
from mamba_ssm.esi.module import Question

KEPT = 2  # times as many windows are found as are then read
# Both chosen on the development articles: evals/ranking.py.
RARITY = 0.5  # power of a token's inverse frequency in the text
BEFORE_SHARE = 0.7  # of a match before the window
NAMED = 6.0  # added to what fits a window whose heading the question names
OVERLAP = 2.0  # taken from a window's mark by each that overlaps it and comes before it: half of it is read already


class Ranked(NamedTuple):
    """A window, its score and the part of it that is due to headings, as the search has them, and its ``fit``: the
    score, judged anew."""

    window: Window
    score: float
    gain: float
    fit: float


def rank(
    text: str, question: Question, found: Sequence[Found], counts: NDArray[np.int64] | None, k: int
) -> list[Ranked]:
    """The k windows that fit best, the best by score and fit together first: answers are read there.

    ``text``: the question's. ``counts`` (V,): how often each token is in the text, if it is known.
    """
    if not found:
        return []
    matches = np.stack([each.matches for each in found])
    ids, weights = (each[0, : matches.shape[2]].cpu().numpy() for each in (question.ids, question.query.weights))
    total = weights.sum()
    if counts is not None:
        weights = weights * np.log1p(counts.sum() / (counts[ids] + 0.5)) ** RARITY
    weights = weights * (total / weights.sum() / (1 + BEFORE_SHARE))
    asked = _words(text)
    gains = np.array([each.gain + NAMED * _within(_words(each.window.section or ""), asked) for each in found])
    fits = (matches[:, 0] + BEFORE_SHARE * matches[:, 1]) @ weights + gains
    best = np.argsort(-fits, kind="stable")[:k]
    ranked = [Ranked(found[i].window, found[i].score, float(gains[i]), float(fits[i])) for i in best]
    # By fit alone, of windows unlike those that the reader learned on, it answers less.
    return sorted(ranked, key=lambda each: -(each.score + each.fit))


def spread(windows: Sequence[Window], marks: Sequence[float]) -> list[tuple[int, float]]:
    """The windows' numbers and marks, best first; a mark is lower by OVERLAP for each window before it that overlaps
    its own."""
    left, ordered = dict(enumerate(marks)), []
    while left:
        best = max(left, key=lambda i: left[i])
        ordered.append((best, left.pop(best)))
        for i in left:
            left[i] -= OVERLAP * _overlap(windows[i], windows[best])
    return ordered


def _overlap(one: Window, other: Window) -> bool:
    earlier, later = sorted((one, other), key=lambda window: window.first)
    return one.book == other.book and later.first < earlier.first + len(earlier.own_ids)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _within(heading: list[str], question: list[str]) -> bool:
    """Whether all words of a heading stand in a question, one after the other."""
    n = len(heading)
    return n > 0 and any(question[i : i + n] == heading for i in range(len(question) - n + 1))
