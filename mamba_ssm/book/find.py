"""Find the best windows of a stream of blocks, for many questions at once, in memory that does not grow.

Shapes: Q questions, M question tokens, K kept windows, R search width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mamba_ssm.book.blocks import Block
from mamba_ssm.book.engine import Engine, Keys
from mamba_ssm.esi.reader import PAD
from mamba_ssm.esi.search import Query, StreamingSearch, whole_window

GROUP = 16  # questions scored together: their token scores of a block take some megabytes


@dataclass(frozen=True)
class Passage:
    """A passage that was found: ``text`` is characters start:end of the book's text. Best is the highest ``score``.

    ``page`` counts from 1; ``label`` is what the book itself calls that page, where it says so. ``book`` is the id of a
    book on a shelf; None where one book was asked.
    """

    text: str
    start: int
    end: int
    page: int | None
    section: str | None
    score: float
    label: str | None = None
    book: str | None = None


@dataclass(frozen=True)
class Window:
    """A window that was kept: its tokens ids (n,), at ``first`` in the book, and their characters as in Block.

    ``book`` as in Passage.
    """

    first: int
    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    text: str
    page: int | None
    section: str | None
    label: str | None = None
    book: str | None = None

    @classmethod
    def of(cls, block: Block, first: int, length: int) -> Window:
        at = slice(first - block.first, first - block.first + length)
        starts, ends = block.starts[at], block.ends[at]
        text = block.text[starts[0] - block.offset : ends[-1] - block.offset]
        mark = block.mark(int(starts[0]) + len(text) - len(text.lstrip()))
        return cls(first, block.ids[at].copy(), starts.copy(), ends.copy(), text, *mark[1:])

    def slice(self, first: int, last: int) -> tuple[str, int, int]:
        """Text, start and end of tokens first to last of the window, without the white space around them."""
        begin = int(self.starts[0])
        start, end = int(self.starts[first]), int(self.ends[last])
        text = self.text[start - begin : end - begin]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return text, start, start + len(text)

    def passage(self, score: float) -> Passage:
        return Passage(*self.slice(0, -1), self.page, self.section, score, self.label, self.book)

    def padded(self, length: int) -> NDArray[np.int32]:
        """The ids, PAD after the book's last."""
        return np.pad(self.ids, (0, length - len(self.ids)), constant_values=PAD)


Found = tuple[Window, float, float]
"""A window, its score, and the part of it that is due to headings."""


class Finder:
    """Keeps the k best windows of each question of the blocks that it is given, in order.

    Where blocks are left out, the first one after them is only searched for windows that straddle its end.
    """

    def __init__(self, queries: Sequence[Query], k: int, engine: Engine) -> None:
        self.k, self.engine, self.config = k, engine, engine.config
        groups = [_stack(queries[i : i + GROUP]) for i in range(0, len(queries), GROUP)]
        self._searches = [StreamingSearch(query, k, self.config.stride) for query in groups]
        self._kept: list[list[list[Window | None]]] = [[[None] * k for _ in query.vectors] for query in groups]
        self._tail: Block | None = None
        self._next = 0

    def wants(self, number: int) -> bool:
        """Whether it is to be given the book's block of this number."""
        return True

    @torch.inference_mode()
    def push(self, block: Block, stored: Keys) -> None:
        """Search a block with its keys, and under its headings."""
        keys = stored.values(self.engine.device)
        headings = self.engine.headings(*block.sections(self.config.stride))
        first, self._next = self._next, block.first + len(block.ids)
        if block.first != first:
            # Scored whole, for a product of another shape may round otherwise.
            for search in self._searches:
                search.seek(block.first)
                search.score(keys, headings)
            self._tail = block.tail(self.config.stride)
            return
        text = block if self._tail is None else block.after(self._tail)
        if self._tail is None:
            keys, headings = whole_window(keys, headings, self.config.stride)
        for search, kept in zip(self._searches, self._kept, strict=True):
            sources, starts = search.push(keys, headings).tolist(), search.top.starts.tolist()
            for row, source in enumerate(sources):
                kept[row] = [
                    kept[row][place] if place < self.k else Window.of(text, start, self.config.window)
                    for place, start in zip(source, starts[row], strict=True)
                ]
        self._tail = block.tail(self.config.stride)

    def found(self) -> list[list[Found]]:
        """The windows of each question, best first. White space alone is no find."""
        return [[hit for hit in hits if not hit[0].text.isspace()] for hits in self.kept()]

    def kept(self) -> list[list[Found]]:
        """The k best windows of each question, or as many as there are, best first."""
        return [
            [(window, score, gain) for window, score, gain in zip(*columns, strict=True) if window is not None]
            for search, kept in zip(self._searches, self._kept, strict=True)
            for columns in zip(kept, search.top.scores.tolist(), search.gains.tolist(), strict=True)
        ]


def _stack(queries: Sequence[Query]) -> Query:
    """Queries of one question each, (1, M, R), as one of many; what is added has no weight."""
    longest = max(query.weights.shape[1] for query in queries)
    pads = [longest - query.weights.shape[1] for query in queries]
    return Query(
        torch.cat([F.pad(query.vectors, (0, 0, 0, pad)) for query, pad in zip(queries, pads, strict=True)]),
        torch.cat([F.pad(query.weights, (0, pad)) for query, pad in zip(queries, pads, strict=True)]),
    )
