"""Running heads and page numbers of a PDF, told by what the pages around have at their edges, and left out.

A page is compared with the four before it and the four after it, so memory is bounded, and the same file always gives
the same text. A line goes if it bears a number that counts along with the pages, or repeats a line of a page before.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

EDGE = 3  # lines at the top, and at the bottom, that may be running heads
NEAR = 4  # pages: heads differ from left to right, and a chapter's first page has none
NUMBERED = 2  # other pages that must have the line with a number that counts along
PLAIN = 4  # those that must have it without: manuals repeat sentences, and some fall on pages' edges

_NUMBER = r"(\d{1,5}|[ivxlc]{1,8})"
_RULE = r"[^\w.,;:!?]{0,3}"  # dashes, bars and brackets: what ends in a full stop is a sentence
_FRONT = re.compile(rf"{_RULE}(?:page\s+)?{_NUMBER}\b(.*)")
_BACK = re.compile(rf"(?:(.*?)\b(?:page\s+)?)?(?<![\w.,]){_NUMBER}{_RULE}$")
_WORDS = re.compile(r"[^\W\d_]{4}|[^\W\d_a-z]{2}")  # a brace or a bare "end" is as likely a listing's
_TITLES = frozenset(("chapter", "part", "section", "appendix", "lecture", "lesson", "unit", "figure", "table"))
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}

Reading = tuple[str, int | None]
"""What a line says without its number, and by how much the number leads the page's index; None where it has none."""


class _Page(NamedTuple):
    """A page's text, the numbers of its lines from the top and from the bottom, and what each of them may mean."""

    text: str
    edges: tuple[list[int], list[int]]
    readings: dict[int, set[Reading]]
    all: set[Reading]  # and each number alone, for the pages whose number stands alone


def without_running_heads(pages: Iterable[str]) -> Iterator[str]:
    """The texts of pages without the lines that come again and again at their edges."""
    near: deque[_Page] = deque(maxlen=2 * NEAR + 1)
    ends = [""] * NEAR  # the window slides over what is not there, before the first page and after the last
    for index, text in enumerate(chain(ends, pages, ends)):
        near.append(_page(text, index))
        if index >= 2 * NEAR:
            yield _stripped(near)


def _stripped(near: deque[_Page]) -> str:
    """The text of the page in the middle."""
    page, before, after = near[NEAR], list(near)[:NEAR], list(near)[NEAR + 1 :]
    gone = set()
    for edge in page.edges:
        for number in edge:  # from the edge inwards: below what stays there is no head
            if not any(_repeats(reading, before, after) for reading in page.readings[number]):
                break
            gone.add(number)
    kept = "\n".join(line for number, line in enumerate(page.text.split("\n")) if number not in gone).strip("\n")
    return kept + "\n" if kept else ""


def _repeats(reading: Reading, before: list[_Page], after: list[_Page]) -> bool:
    earlier, later = (sum(reading in page.all for page in pages) for pages in (before, after))
    if reading[1] is not None:
        return earlier + later >= NUMBERED
    return earlier + later >= PLAIN and earlier > 0


def _page(text: str, index: int) -> _Page:
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    top, bottom = filled[:EDGE], filled[: -EDGE - 1 : -1]
    readings = {number: set(_readings(lines[number], index)) for number in top + bottom}
    said = set().union(*readings.values())
    return _Page(text, (top, bottom), readings, said | {("", lead) for _, lead in said if lead is not None})


def _readings(line: str, index: int) -> Iterator[Reading]:
    line = " ".join(line.split()).casefold()
    if len(line) > 200:  # a paragraph
        return
    if _WORDS.search(line):
        yield line, None
    for match, number, rest in ((_FRONT.fullmatch(line), 1, 2), (_BACK.fullmatch(line), 2, 1)):
        if match and (said := (match[rest] or "").strip()) not in _TITLES:
            yield said, _value(match[number]) - index


def _value(number: str) -> int:
    if number.isdecimal():
        return int(number)
    digits = [_ROMAN[digit] for digit in number]
    return sum(-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True))
