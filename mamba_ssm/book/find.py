"""Find the best windows of a stream of blocks, for many questions at once, in memory that does not grow.

Shapes: Q questions, M question tokens, K kept windows, R search width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mamba_ssm.book.blocks import Block
from mamba_ssm.book.engine import Engine
from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.reader import PAD
from mamba_ssm.esi.search import Keys, Query, StreamingSearch, whole_window
from mamba_ssm.text.words import whole_words

GROUP = 16  # questions scored together: their token scores of a block take some megabytes
BEFORE = 4  # half windows before a window that are looked at, too
# Windows that are matched at once, of questions in whole such numbers of tokens: in other shapes sums round otherwise.
WINDOWS, TOKENS = 4, 16


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
    """A window that was kept, at ``first`` in the book: its tokens and those of its margins, ids (n,), and their
    characters as in Block.

    ``own``: which of the ids are no margin's. ``book`` as in Passage.
    """

    first: int
    own: slice
    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    text: str
    page: int | None
    section: str | None
    label: str | None = None
    book: str | None = None

    @classmethod
    def of(cls, block: Block, first: int, config: ESIConfig) -> Window:
        """The window of a block, with as much of its margins as the block has."""
        place = first - block.first
        before = min(config.margin, place)
        at = slice(place - before, place + config.window + config.margin)
        ids, starts, ends = block.ids[at].copy(), block.starts[at].copy(), block.ends[at].copy()
        own = slice(before, min(before + config.window, len(ids)))
        text = block.text[starts[0] - block.offset : ends[-1] - block.offset]
        window = cls(first, own, ids, starts, ends, text, None, None)
        _, page, section, label = block.mark(window.slice(own.start, own.stop - 1)[1])
        return replace(window, page=page, section=section, label=label)

    @property
    def own_ids(self) -> NDArray[np.int32]:
        return self.ids[self.own]

    @property
    def own_text(self) -> str:
        """Without the white space around it."""
        return self.slice(self.own.start, self.own.stop - 1)[0]

    def slice(self, first: int, last: int) -> tuple[str, int, int]:
        """Text, start and end of tokens first to last of the ids, without the white space around them."""
        begin = int(self.starts[0])
        start, end = int(self.starts[first]), int(self.ends[last])
        text = self.text[start - begin : end - begin]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return text, start, start + len(text)

    def whole_words(self, first: int, last: int) -> tuple[int, int]:
        """Tokens first to last, and what is missing of the words that they begin and end in."""
        begin = int(self.starts[0])

        def piece(token: int) -> str:
            return self.text[int(self.starts[token]) - begin : int(self.ends[token]) - begin]

        return whole_words(piece, len(self.ids), first, last)

    def passage(self, score: float, span: tuple[int, int] | None = None) -> Passage:
        """The window as evidence: without its margins, but with the tokens from first to last of a span in it."""
        first, last = self.own.start, self.own.stop - 1
        if span is not None:
            first, last = min(first, span[0]), max(last, span[1])
        return Passage(*self.slice(first, last), self.page, self.section, score, self.label, self.book)

    def padded(self, config: ESIConfig) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The ids, PAD where margins or the window's end are missing, and which are its own: two of (read_window,)."""
        before = self.missing(config)
        after = config.read_window - before - len(self.ids)
        own = np.zeros(config.read_window, bool)
        own[before + self.own.start : before + self.own.stop] = True
        return np.pad(self.ids, (before, after), constant_values=PAD), own

    def missing(self, config: ESIConfig) -> int:
        """How many tokens of its first margin are not there, because the text begins with it."""
        return config.margin - self.own.start


class Found(NamedTuple):
    """A window, its score, the part of it that is due to headings, and how well each token of the question is matched:
    matches (2, M), in the window, and in it or the BEFORE half windows before it."""

    window: Window
    score: float
    gain: float
    matches: NDArray[np.float32]


class Finder:
    """Keeps the k best windows of each question of the blocks that it is given, in order, and counts their tokens.

    Where blocks are left out, the first one after them is only searched for windows that straddle its end.
    """

    def __init__(self, queries: Sequence[Query], k: int, engine: Engine) -> None:
        self.k, self.engine, self.config = k, engine, engine.config
        queries = [trimmed(query) for query in queries]
        self._lengths = [query.weights.shape[1] for query in queries]
        groups = [_stack(queries[i : i + GROUP]) for i in range(0, len(queries), GROUP)]
        self._searches = [StreamingSearch(query, k, self.config.stride) for query in groups]
        self._kept: list[list[list[_Kept | None]]] = [[[None] * k for _ in query.vectors] for query in groups]
        self._unfinished: list[_Kept] = []
        self._counts = np.zeros(engine.tokenizer.vocab_size, np.int64)
        self._tail: Block | None = None
        self._keys_before: Keys | None = None
        self._next = 0

    def wants(self, number: int) -> bool:
        """Whether it is to be given the book's block of this number."""
        return True

    @torch.inference_mode()
    def push(self, block: Block, stored: Keys) -> None:
        """Search a block with its keys, and under its headings."""
        first, self._next = self._next, block.first + len(block.ids)
        keys = stored.map(lambda part: part.to(self.engine.device))
        headings = self.engine.headings(*block.sections(self.config.stride))
        if block.first != first:
            # Scored whole, for a product of another shape may round otherwise.
            for search in self._searches:
                search.seek(block.first)
                search.score(keys, headings)
            self._unfinished = []
            self._leave(block, keys)
            return
        self._counts += np.bincount(block.ids, minlength=len(self._counts))
        text = self.finish(block)
        if self._tail is None:
            keys, headings = whole_window(keys, headings, self.config.stride)
        around = keys if self._keys_before is None else keys.after(self._keys_before)
        halves = around.map(lambda part: part.unflatten(0, (-1, self.config.stride)))
        origin = block.first - (len(around) - len(keys))
        for search, kept in zip(self._searches, self._kept, strict=True):
            order = search.push(keys, headings)
            sources, starts = order.tolist(), search.top.starts.tolist()
            rows, places = (order >= self.k).nonzero(as_tuple=True)
            first_halves = (search.top.starts[rows, places] - origin) // self.config.stride
            new = matches(search.query.vectors[rows], halves, reach(first_halves))
            for row, source in enumerate(sources):
                kept[row] = [
                    kept[row][place] if place < self.k else self._keep(text, start, next(new))
                    for place, start in zip(source, starts[row], strict=True)
                ]
        self._leave(block, around)

    def finish(self, block: Block) -> Block:
        """Give the windows before a block what their margins have of it. Returns it with the end of the one before."""
        text = block if self._tail is None else block.after(self._tail)
        for each in self._unfinished:
            each.window = Window.of(text, each.window.first, self.config)
        self._unfinished = []
        return text

    def _keep(self, text: Block, start: int, matches: NDArray[np.float32]) -> _Kept:
        kept = _Kept(Window.of(text, start, self.config), matches)
        if start + self.config.window + self.config.margin > text.first + len(text.ids):
            self._unfinished.append(kept)
        return kept

    def _leave(self, block: Block, keys: Keys) -> None:
        """Keep what the windows at the block's end, and those that straddle it, need of it."""
        self._tail = block.tail(self.config.window + self.config.margin)
        self._keys_before = keys.map(lambda part: part[-(BEFORE + 1) * self.config.stride :])

    def counts(self) -> NDArray[np.int64]:
        """How often each token was in what was searched: (V,)."""
        return self._counts

    def found(self) -> list[list[Found]]:
        """The windows of each question, best first. White space alone is no find."""
        return [[hit for hit in hits if hit.window.own_text] for hits in self.kept()]

    def kept(self) -> list[list[Found]]:
        """The k best windows of each question, or as many as there are, best first."""
        rows = [
            (kept, scores, gains)
            for search, group in zip(self._searches, self._kept, strict=True)
            for kept, scores, gains in zip(group, search.top.scores.tolist(), search.gains.tolist(), strict=True)
        ]
        return [
            [
                Found(each.window, score, gain, each.matches[:, :length])
                for each, score, gain in zip(*row, strict=True)
                if each is not None
            ]
            for row, length in zip(rows, self._lengths, strict=True)
        ]


@dataclass
class _Kept:
    window: Window
    matches: NDArray[np.float32]


def reach(windows: Tensor) -> Tensor:
    """The half windows to look at for windows by their numbers (n,): (n, BEFORE + 2), the window's own two last."""
    # Before the first half window is none: it is taken again.
    return (windows[:, None] + torch.arange(-BEFORE, 2, device=windows.device)).clamp(min=0)


def matches(vectors: Tensor, halves: Keys, places: Tensor) -> Iterator[NDArray[np.float32]]:
    """As in Found, (2, M) for each of n windows.

    vectors (n, M, R) of the questions; halves (H, stride, R) of keys; places (n, BEFORE + 2) in these, as of `reach`.
    """
    length, n = vectors.shape[1], len(places)
    vectors = F.pad(vectors, (0, 0, 0, -length % TOKENS))
    for first in range(0, n, WINDOWS):
        at = torch.arange(first, first + WINDOWS, device=places.device).clamp(max=n - 1)
        there = places[at]
        keys = Keys(halves.codes[there].flatten(1, 2), halves.scales[there].flatten(1, 2)).values()
        best = (vectors[at] @ keys.mT).unflatten(-1, (places.shape[1], -1)).amax(-1)[:, :length]
        both = torch.stack([best[..., -2:].amax(-1), best.amax(-1)], 1)
        yield from both[: n - first].cpu().numpy()


def trimmed(query: Query) -> Query:
    """A query of one question without the tokens that only pad it, which weigh nothing."""
    length = 1 + int(query.weights[0].nonzero().amax())
    length += -length % TOKENS
    return Query(query.vectors[:, :length], query.weights[:, :length])


def _stack(queries: Sequence[Query]) -> Query:
    """Queries of one question each, (1, M, R), as one of many; what is added has no weight."""
    longest = max(query.weights.shape[1] for query in queries)
    pads = [longest - query.weights.shape[1] for query in queries]
    return Query(
        torch.cat([F.pad(query.vectors, (0, 0, 0, pad)) for query, pad in zip(queries, pads, strict=True)]),
        torch.cat([F.pad(query.weights, (0, pad)) for query, pad in zip(queries, pads, strict=True)]),
    )
