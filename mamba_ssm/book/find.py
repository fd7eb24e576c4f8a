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
from torch import Tensor

from mamba_ssm.book.blocks import Block
from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.reader import PAD
from mamba_ssm.esi.search import Query, StreamingSearch

GROUP = 16  # questions scored together: their token scores of a block take some megabytes


@dataclass(frozen=True)
class Passage:
    """A passage that was found: ``text`` is characters start:end of the book's text. Best is the highest ``score``.

    ``book`` is the id of a book on a shelf; None where one book was asked.
    """

    text: str
    start: int
    end: int
    page: int | None
    section: str | None
    score: float
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
    book: str | None = None

    @classmethod
    def of(cls, block: Block, first: int, length: int) -> Window:
        at = slice(first - block.first, first - block.first + length)
        starts, ends = block.starts[at], block.ends[at]
        text = block.text[starts[0] - block.offset : ends[-1] - block.offset]
        mark = block.mark(int(starts[0]) + len(text) - len(text.lstrip()))
        return cls(first, block.ids[at].copy(), starts.copy(), ends.copy(), text, mark.page, mark.section)

    def slice(self, first: int, last: int) -> tuple[str, int, int]:
        """Text, start and end of tokens first to last of the window, without the white space around them."""
        begin = int(self.starts[0])
        start, end = int(self.starts[first]), int(self.ends[last])
        text = self.text[start - begin : end - begin]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return text, start, start + len(text)

    def passage(self, score: float) -> Passage:
        return Passage(*self.slice(0, -1), self.page, self.section, score, self.book)

    def padded(self, length: int) -> NDArray[np.int32]:
        """The ids, PAD after the book's last."""
        return np.pad(self.ids, (0, length - len(self.ids)), constant_values=PAD)


Found = tuple[Window, float]
"""A window and its score."""


class Finder:
    """Keeps the k best windows of each question of the blocks that it is given, in order."""

    def __init__(self, queries: Sequence[Query], k: int, config: ESIConfig) -> None:
        self.k, self.config = k, config
        groups = [_stack(queries[i : i + GROUP]) for i in range(0, len(queries), GROUP)]
        self._searches = [StreamingSearch(query, k, config.stride) for query in groups]
        self._kept: list[list[list[Window | None]]] = [[[None] * k for _ in query.vectors] for query in groups]
        self._tail: Block | None = None

    @torch.inference_mode()
    def push(self, block: Block, keys: Tensor) -> None:
        """Search a block with its keys (L, R)."""
        text = block if self._tail is None else block.after(self._tail)
        if self._tail is None:  # a book shorter than a window is one window
            keys = F.pad(keys, (0, 0, 0, max(self.config.window - len(keys), 0)))
        for search, kept in zip(self._searches, self._kept, strict=True):
            sources, starts = search.push(keys).tolist(), search.top.starts.tolist()
            for row, source in enumerate(sources):
                kept[row] = [
                    kept[row][place] if place < self.k else Window.of(text, start, self.config.window)
                    for place, start in zip(source, starts[row], strict=True)
                ]
        self._tail = block.tail(self.config.stride)

    def found(self) -> list[list[Found]]:
        """The windows of each question, best first. White space alone is no find."""
        return [
            [(w, score) for w, score in zip(windows, scores, strict=True) if w is not None and not w.text.isspace()]
            for search, kept in zip(self._searches, self._kept, strict=True)
            for windows, scores in zip(kept, search.top.scores.tolist(), strict=True)
        ]


def _stack(queries: Sequence[Query]) -> Query:
    """Queries of one question each, (1, M, R), as one of many; what is added has no weight."""
    longest = max(query.weights.shape[1] for query in queries)
    pads = [longest - query.weights.shape[1] for query in queries]
    return Query(
        torch.cat([F.pad(query.vectors, (0, 0, 0, pad)) for query, pad in zip(queries, pads, strict=True)]),
        torch.cat([F.pad(query.weights, (0, pad)) for query, pad in zip(queries, pads, strict=True)]),
    )
