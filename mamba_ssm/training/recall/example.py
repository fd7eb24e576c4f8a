"""What a task is made of: pieces of text for a haystack, and a question about them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A sentence, or a heading, to be laid into a haystack at ``depth``, 0 to 1.

    ``answer`` is the value that it gives, and a right one if it is ``gold``. Other pieces distract, or are headings.
    """

    text: str
    depth: float
    answer: str | None = None
    gold: bool = True
    heading: bool = False

    @property
    def answer_characters(self) -> tuple[int, int] | None:
        """Start and end of the answer, at its first place as a word of its own."""
        if self.answer is None:
            return None
        match = re.search(rf"(?<!\w){re.escape(self.answer)}(?!\w)", self.text)
        assert match is not None, self
        return match.span()


@dataclass(frozen=True)
class Example:
    """A question about its pieces; all of ``answers`` must be named."""

    task: str
    pieces: tuple[Piece, ...]
    question: str
    answers: tuple[str, ...]
