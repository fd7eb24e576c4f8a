"""Running heads and page numbers of a PDF, told by what the pages around have at their edges, and left out.

A page is compared with the four before it and the four after it, so memory is bounded, and the same file always gives
the same text. A line goes if it bears a number that counts along with the pages, or repeats a line of a page before.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

EDGE = 3  # lines at the top, and at the bottom, that may be running heads
NEAR = 4  # pages: heads differ from left to right, and a chapter's first page has none
REPEATS = 2  # other pages that must have the line

_NUMBER = r"(\d{1,5}|[ivxlc]{1,8})"
_FRONT = re.compile(rf"\W{{0,3}}(?:page\s+)?{_NUMBER}\b(.*)", re.I)
_BACK = re.compile(rf"(?:(.*?)\b(?:page\s+)?)?\b{_NUMBER}\W{{0,3}}$", re.I)
_WORDS = re.compile(r"[^\W\d_]{4}|[^\W\d_a-zA-Z]{2}")  # a brace or a bare "end" is as likely a listing's
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}

Reading = tuple[str, int | None]
"""What a line says without its number, and by how much the number leads the page's index; None where it has none."""


def without_running_heads(pages: Iterable[str]) -> Iterator[str]:
    """The texts of pages without the lines that come again and again at their edges."""
    near: deque[tuple[str, dict[int, set[Reading]], set[Reading]]] = deque(maxlen=2 * NEAR + 1)
    ends = [""] * NEAR  # the window slides over what is not there, before the first page and after the last
    for index, text in enumerate(chain(ends, pages, ends)):
        lines = _edges(text, index)
        near.append((text, lines, set().union(*lines.values())))
        if index >= 2 * NEAR:
            yield _stripped(*near[NEAR][:2], [page[2] for page in near])


def _stripped(text: str, edges: dict[int, set[Reading]], near: list[set[Reading]]) -> str:
    before, after = near[:NEAR], near[NEAR + 1 :]
    gone = set()
    for line, readings in edges.items():
        for reading in readings:
            earlier, later = (sum(reading in page for page in pages) for pages in (before, after))
            if earlier + later >= REPEATS and (earlier or reading[1] is not None):
                gone.add(line)
    if not gone:
        return text
    kept = "\n".join(line for number, line in enumerate(text.split("\n")) if number not in gone).strip("\n")
    return kept + "\n" if kept else ""


def _edges(text: str, index: int) -> dict[int, set[Reading]]:
    """What may be meant by each line near the page's edges, by the line's number."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    return {number: set(_readings(lines[number], index)) for number in filled[:EDGE] + filled[-EDGE:]}


def _readings(line: str, index: int) -> Iterator[Reading]:
    line = " ".join(line.split()).casefold()
    if len(line) > 200:  # a paragraph
        return
    if _WORDS.search(line):
        yield line, None
    if match := _FRONT.fullmatch(line):
        yield match[2].strip(), _value(match[1]) - index
    if match := _BACK.fullmatch(line):
        yield (match[1] or "").strip(), _value(match[2]) - index


def _value(number: str) -> int:
    if number.isdecimal():
        return int(number)
    digits = [_ROMAN[digit] for digit in number]
    return sum(-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True))
