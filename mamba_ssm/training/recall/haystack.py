"""Lay pieces of text into filler of any length, and stream the result in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.training.recall.example import Example, Piece
from mamba_ssm.training.recall.filler import Filler, Ints

Span = tuple[int, int]
"""First and last token."""


class _Order:
    """The filler from a random paragraph on to its end; then, again and again, its paragraphs in random order."""

    RUN = 65536

    def __init__(self, filler: Filler, seed: int) -> None:
        self.tokens, self.seed = filler.tokens, seed
        self.starts = filler.paragraphs
        self.ends = np.append(self.starts[1:], len(self.tokens))
        self.first = int(self.starts[np.random.default_rng(seed).integers(len(self.starts))])

    def _shuffled(self, lap: int) -> Ints:
        return np.random.default_rng((self.seed, lap)).permutation(len(self.starts))

    def runs(self) -> Iterator[NDArray[np.uint16]]:
        """The tokens, endlessly, as slices."""
        for start in range(self.first, len(self.tokens), self.RUN):
            yield self.tokens[start : start + self.RUN]
        lap = 0
        while True:
            lap += 1
            for paragraph in self._shuffled(lap).tolist():
                yield self.tokens[self.starts[paragraph] : self.ends[paragraph]]

    def sources(self, places: Ints) -> Ints:
        """Where in the filler the tokens at these places of the stream come from."""
        laps, rest = np.divmod(places + self.first, len(self.tokens))
        for lap in np.unique(laps[laps > 0]).tolist():
            order = self._shuffled(lap)
            ends = np.cumsum((self.ends - self.starts)[order])
            here = laps == lap
            paragraph = np.searchsorted(ends, rest[here], side="right")
            rest[here] += self.ends[order][paragraph] - ends[paragraph]
        return rest


class Haystack:
    """A text of ``length`` tokens with pieces in it.

    ``sentences`` and ``answers`` say where the pieces and the answers in them stand, first and last token each.
    """

    def __init__(self, filler: Filler, pieces: Iterable[Piece], length: int, seed: int) -> None:
        """Pieces that are equal are laid once. Raises ValueError where they do not fit."""
        self.filler, self.length = filler, length
        self._order = _Order(filler, seed)
        self.sentences: dict[Piece, Span] = {}
        self.answers: dict[Piece, Span] = {}
        ordered = sorted(set(pieces), key=lambda piece: (piece.depth, piece.text))
        lead = {True: "\n\n", False: " "}
        encoded = [filler.tokenizer.encode(lead[piece.heading] + piece.text) for piece in ordered]
        self._filler_tokens = length - sum(len(tokens.ids) for tokens in encoded)
        if self._filler_tokens < 0:
            raise ValueError(f"{len(ordered)} pieces need more than {length} tokens")
        places = np.array([int(piece.depth * self._filler_tokens) for piece in ordered], dtype=np.int64)
        # A heading is a paragraph; what stands with headings goes to the end of one, so that all keep their order.
        self._move_to_cuts(places, filler.paragraphs if any(piece.heading for piece in ordered) else filler.cuts)
        self._laid = [(place, tokens.ids) for place, tokens in zip(places.tolist(), encoded, strict=True)]
        before = 0
        for piece, place, tokens in zip(ordered, places.tolist(), encoded, strict=True):
            first = place + before
            before += len(tokens.ids)
            self.sentences[piece] = first, place + before - 1
            if (characters := piece.answer_characters) is not None:
                start, end = (character + len(lead[piece.heading]) for character in characters)
                self.answers[piece] = (
                    first + int(np.searchsorted(tokens.ends, start, side="right")),
                    first + int(np.searchsorted(tokens.starts, end, side="left")) - 1,
                )

    def _move_to_cuts(self, places: Ints, cuts: Ints) -> None:
        """Move places back to the nearest of the filler's cuts, or to the beginning."""
        waiting = np.arange(len(places))
        while len(waiting):
            sources = self._order.sources(places[waiting])
            start, cut = (
                each[np.searchsorted(each, sources, side="right") - 1] for each in (self.filler.paragraphs, cuts)
            )
            places[waiting] -= sources - np.maximum(start, cut)
            # Where its paragraph has none before it, look in the paragraph before, whichever that is here.
            waiting = waiting[(cut < start) & (places[waiting] > 0)]
            places[waiting] -= 1

    def gold(self, example: Example) -> list[Span]:
        """What must be found for an example: the answers in its gold pieces; the whole piece where it has none."""
        return [self.answers.get(piece, self.sentences[piece]) for piece in example.pieces if piece.gold]

    def headings(self, places: Ints) -> tuple[list[str | None], Ints]:
        """Titles, and under which of them the tokens at ``places`` stand: the first, None, is before any heading."""
        headings = {first: piece.text for piece, (first, _) in self.sentences.items() if piece.heading}
        firsts = sorted(headings)
        return [None, *(headings[first] for first in firsts)], np.searchsorted(firsts, places, side="right")

    def blocks(self, size: int) -> Iterator[NDArray[np.int32]]:
        """The text in blocks of ``size`` tokens, the last one of 1 to ``size``."""
        waiting: list[NDArray] = []
        count = 0
        for part in self._parts():
            while count + len(part) >= size:
                room = size - count
                yield np.concatenate([*waiting, part[:room]]).astype(np.int32)
                waiting, count, part = [], 0, part[room:]
            waiting.append(part)
            count += len(part)
        if count:
            yield np.concatenate(waiting).astype(np.int32)

    def _parts(self) -> Iterator[NDArray]:
        laid, place = iter([*self._laid, (self._filler_tokens, None)]), 0
        until, ids = next(laid)
        for run in self._order.runs():
            end = place + len(run)
            while until <= end:
                yield run[: until - place]
                if ids is None:
                    return
                yield ids
                run, place = run[until - place :], until
                until, ids = next(laid)
            yield run
            place = end
