"""A book as a stream of blocks of tokens, each with the text that it covers. Memory does not grow with the book.

Shapes: n tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.text import Piece
from mamba_ssm.text.tokenizer import Tokenizer

ENCODE_CHARS = 16_384  # the tokenizer's own objects take some hundred bytes a token while it works


class Mark(NamedTuple):
    """From this character of the book on, the text is on this page, of this label, and in this section."""

    start: int
    page: int | None
    section: str | None
    label: str | None = None


@dataclass(frozen=True)
class Block:
    """Some consecutive tokens of a book: ids (n,) int32, and the characters they cover, starts and ends (n,) int64.

    ``first`` is the place of ids[0] in the book, ``offset`` that of text[0]. The text reaches at least to where that of
    the next block begins. The first of ``marks`` is not after ``offset``.
    """

    first: int
    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    text: str
    offset: int
    marks: tuple[Mark, ...]

    def tail(self, n: int) -> Block:
        """The last n tokens."""
        start = int(self.starts[-n:][0])
        return replace(
            self,
            first=self.first + max(len(self.ids) - n, 0),
            ids=self.ids[-n:],
            starts=self.starts[-n:],
            ends=self.ends[-n:],
            text=self.text[start - self.offset :],
            offset=start,
            marks=_marks_of(self.marks, start, start + len(self.text)),
        )

    def after(self, before: Block) -> Block:
        """This block and the one before it, as one."""
        return Block(
            before.first,
            np.concatenate([before.ids, self.ids]),
            np.concatenate([before.starts, self.starts]),
            np.concatenate([before.ends, self.ends]),
            # The text of the two overlaps where tokens on both sides are parts of one character.
            before.text[: self.offset - before.offset] + self.text,
            before.offset,
            (*before.marks, *self.marks),
        )

    def mark(self, character: int) -> Mark:
        """Page and section of a character of the book."""
        return [mark for mark in self.marks if mark.start <= character][-1]

    def sections(self, stride: int) -> tuple[list[str | None], NDArray[np.int64]]:
        """The sections of the marks, and under which of them every ``stride``-th token stands, from the first."""
        begins = np.array([mark.start for mark in self.marks])
        under = np.searchsorted(begins, self.starts[::stride], side="right") - 1
        return [mark.section for mark in self.marks], under


def _marks_of(marks: Iterable[Mark], start: int, end: int) -> tuple[Mark, ...]:
    """The marks that hold between two characters."""
    marks = [mark for mark in marks if mark.start < end]
    before = sum(mark.start <= start for mark in marks)
    return tuple(marks[max(before - 1, 0) :])


class _Text:
    """The text that was read and is not yet in a block."""

    def __init__(self) -> None:
        self.text, self.offset = "", 0
        self.marks: list[Mark] = []

    @property
    def end(self) -> int:
        return self.offset + len(self.text)

    def take(self, pieces: Iterable[Piece]) -> Iterator[str]:
        for piece in pieces:
            mark = Mark(self.end, piece.page, piece.section, piece.label)
            if not self.marks or self.marks[-1][1:] != mark[1:]:
                self.marks.append(mark)
            self.text += piece.text
            yield piece.text

    def cut(self, end: int, following: int) -> tuple[str, int, tuple[Mark, ...]]:
        """Text, offset and marks up to ``end``; what follows begins at ``following``."""
        text, offset = self.text[: end - self.offset], self.offset
        marks = _marks_of(self.marks, offset, end)
        self.text, self.offset = self.text[following - offset :], following
        self.marks = list(_marks_of(self.marks, following, self.end + 1))
        return text, offset, marks


def text_of(blocks: Iterable[Block], start: int, end: int | None) -> str:
    """Characters start:end of a book, from the blocks that hold them; None for ``end`` takes all that there are."""
    parts = []
    for block in blocks:
        if end is not None and block.offset >= end:
            break
        parts.append(block.text[max(start - block.offset, 0) : None if end is None else end - block.offset])
        start = max(start, block.offset + len(block.text))  # the texts of blocks may overlap
    return "".join(parts)


def text_blocks(pieces: Iterable[Piece], tokenizer: Tokenizer, size: int) -> Iterator[Block]:
    """Blocks of ``size`` tokens, the last one of 1 to ``size``."""
    text, first = _Text(), 0
    ids, starts, ends = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
    for new in tokenizer.encode_stream(text.take(pieces), ENCODE_CHARS):
        ids = np.concatenate([ids, new.ids])
        starts, ends = np.concatenate([starts, new.starts]), np.concatenate([ends, new.ends])
        while len(ids) > size:
            following = int(starts[size])
            covered = text.cut(max(following, int(ends[size - 1])), following)
            yield Block(first, ids[:size], starts[:size], ends[:size], *covered)
            ids, starts, ends = ids[size:], starts[size:], ends[size:]
            first += size
    if len(ids):
        yield Block(first, ids, starts, ends, *text.cut(text.end, text.end))
