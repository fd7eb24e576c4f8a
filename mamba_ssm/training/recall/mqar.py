"""Multi-query associative recall as in Zoology (Arora et al. 2023, arXiv 2312.04927).

A row is P pairs of key and value, then single keys to be answered with their value. Of a vocabulary of V tokens, keys
are 1 to V / 2 - 1 and values V / 2 to V - 1, each drawn without repetition in a row. A query may stand at every other
place after the pairs; place i of the S there has the probability (i + 1) ** (a - 1), normalised, and P are drawn
without repetition, the first for the first pair. All other places hold random tokens of the whole vocabulary: the value
does not follow its query, and a filler may happen to be a key. A target stands at the query's own place.

Shapes: N rows, L tokens of a row, P pairs, S places for queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

VOCABULARY = 8192
POWER = 0.01
IGNORE = -100


class Size(NamedTuple):
    """Length of a row, pairs in it, number of rows."""

    length: int
    pairs: int
    rows: int


TRAIN = (
    Size(64, 4, 100_000),
    Size(128, 8, 20_000),
    Size(256, 16, 20_000),
    Size(256, 32, 20_000),
    Size(256, 64, 20_000),
)
TEST = tuple(Size(*size, 1_000) for size in ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)))


class Asked(NamedTuple):
    """One query on its own: context (T,), all that stands before it; the key; its value, and where in the context."""

    context: Ints
    key: int
    value: int
    place: int


@dataclass(frozen=True)
class MQAR:
    """inputs and targets (N, L), IGNORE but at queries; the place of each pair's query, queries (N, P)."""

    inputs: Ints
    targets: Ints
    queries: Ints

    def questions(self) -> Iterator[Asked]:
        """Every query of every row, for a model that is asked a question. The contexts are views of the rows."""
        for row, targets, places in zip(self.inputs, self.targets, self.queries, strict=True):
            for pair, place in enumerate(places.tolist()):
                yield Asked(row[:place], int(row[place]), int(targets[place]), 2 * pair + 1)


def mqar(size: Size, seed: int, vocabulary: int = VOCABULARY) -> MQAR:
    """Raises ValueError where the pairs and their queries do not fit."""
    length, pairs, rows = size
    if length % 2 or 4 * pairs > length:
        raise ValueError(f"{pairs} pairs and their queries need an even length of at least {4 * pairs}, not {length}")
    rng = np.random.default_rng(seed)
    keys = _distinct(rng, rows, pairs, 1, vocabulary // 2)
    values = _distinct(rng, rows, pairs, vocabulary // 2, vocabulary)
    # The largest of log p + Gumbel noise, in order, are draws from p without repetition.
    chance = (POWER - 1) * np.log(np.arange(1, length // 2 - pairs + 1))
    queries = 2 * pairs + 2 * np.argsort(-chance - rng.gumbel(size=(rows, len(chance))), axis=1)[:, :pairs]
    inputs = rng.integers(0, vocabulary, (rows, length))
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(inputs, queries, keys, 1)
    targets = np.full((rows, length), IGNORE)
    np.put_along_axis(targets, queries, values, 1)
    return MQAR(inputs, targets, queries)


def _distinct(rng: np.random.Generator, rows: int, n: int, low: int, high: int) -> Ints:
    """(rows, n), uniform among the rows that hold nothing twice: what is there already is drawn again."""
    drawn = rng.integers(low, high, (rows, n))
    while True:
        order = drawn.argsort(1, kind="stable")
        ranked = np.take_along_axis(drawn, order, 1)
        again = np.zeros(drawn.shape, dtype=bool)
        np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
        if not again.any():
            return drawn
        drawn[again] = rng.integers(low, high, again.sum())
