"""A page of a PDF as people see it: drawn, and with the places of a passage's words on it."""

from __future__ import annotations

import ctypes
import difflib
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.errors import BookError
from mamba_ssm.text.pdf import HEAD, PDFIUM, is_pdf, open_pdf

if TYPE_CHECKING:
    from pypdfium2 import PdfPage, PdfTextPage

MAX_WIDTH = 2400
MAX_PIXELS = 8_000_000  # a page may claim to be as narrow and as tall as it likes
GRID = 1 << 16  # PDFium maps a page's places to whole pixels of a picture: one far finer than any that is drawn
RUNNING = 16  # words that the text may lack between two of its words, as where a running head was left out
# Hyphens, with the line's end that may follow, are left out of a word on both sides: in the text they may be gone.
_WORD = re.compile("\\w+(?:(?:[-\u00ad\u2010\u2011]|[\x02\ufffe])[\r\n]*\\w+)*")


class Box(NamedTuple):
    """A rectangle on a page as it is seen, in fractions of its width and height from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


class _Rectangle(NamedTuple):
    """A rectangle in the page's own units, as it was written: upwards, and before the page is turned."""

    left: float
    bottom: float
    right: float
    top: float

    def around(self, other: _Rectangle) -> _Rectangle:
        """The smallest rectangle with both in it."""
        left, bottom = min(self.left, other.left), min(self.bottom, other.bottom)
        return _Rectangle(left, bottom, max(self.right, other.right), max(self.top, other.top))

    def is_followed_by(self, other: _Rectangle) -> bool:
        """Whether the other stands on the same line, not before this one."""
        return self.bottom <= (other.bottom + other.top) / 2 <= self.top and other.right >= self.left


class _Word(NamedTuple):
    """A word as it is compared, and its characters start:end."""

    key: str
    start: int
    end: int


def page_count(path: Path) -> int | None:
    """How many pages a PDF has; None for a file that is none. Raises BookError for a damaged one."""
    with path.open("rb") as file:
        if not is_pdf(file.read(HEAD)):
            return None
    with PDFIUM:
        document = open_pdf(path)
        try:
            return len(document)
        finally:
            document.close()


def draw_page(path: Path, number: int, width: int) -> bytes:
    """A page, counted from 1, as a PNG of ``width`` pixels, or fewer where it would be larger than MAX_PIXELS.

    Raises BookError for a page that is not there or is damaged, ValueError for a width out of range.
    """
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"width must be 1 to {MAX_WIDTH} pixels, not {width}")
    with _page(path, number) as page:
        wide, high = page.get_size()
        scale = min(width / wide, (MAX_PIXELS / (wide * high)) ** 0.5)
        pixels = page.render(scale=scale, rev_byteorder=True, prefer_bgrx=False).to_numpy().copy()
    return _png(pixels[..., :3])


def word_boxes(path: Path, number: int, text: str, start: int, end: int) -> list[Box]:
    """Where on a page, counted from 1, the words of text[start:end] stand: a box for each line of each run of words.

    ``text`` is a stretch of the book's text around them; what of it lies on other pages is not found. The text was
    made from the page's characters, but words divided at a line's end were joined in it, and running heads left out:
    so the two are aligned word by word.

    Raises BookError for a page that is not there or is damaged.
    """
    with _page(path, number) as page:
        characters = page.get_textpage()
        raw = _characters(characters)
        wanted, there = list(_words(text)), list(_words(raw))
        places = _align([word.key for word in wanted], [word.key for word in there])
        lines: list[_Rectangle] = []
        last: int | None = None
        for word, place in zip(wanted, places, strict=True):
            if place is None or word.end <= start or word.start >= end:
                continue
            for index in range(there[place].start, there[place].end):
                if not raw[index].isalnum():
                    continue
                rectangle = _rectangle(characters, index)
                if last in (place - 1, place) and lines[-1].is_followed_by(rectangle):
                    lines[-1] = lines[-1].around(rectangle)
                else:
                    lines.append(rectangle)
                last = place
        return [_as_seen(page, line) for line in lines]


@contextmanager
def _page(path: Path, number: int) -> Iterator[PdfPage]:
    import pypdfium2 as pdfium

    with PDFIUM:
        try:
            document = open_pdf(path)
            try:
                if not 1 <= number <= len(document):
                    raise BookError(f"there is no page {number}: the PDF has {len(document)}")
                page = document[number - 1]
                try:
                    yield page
                finally:
                    page.close()  # closes the text page too
            finally:
                document.close()
        except pdfium.PdfiumError as error:
            raise BookError(f"page {number} is damaged; repair the PDF first, for example with qpdf") from error


def _characters(characters: PdfTextPage) -> str:
    """The page's characters, by their number on it, which the text that PDFium extracts does not keep."""
    from pypdfium2 import raw

    return "".join(chr(raw.FPDFText_GetUnicode(characters, index)) for index in range(characters.count_chars()))


def _words(text: str) -> Iterator[_Word]:
    for match in _WORD.finditer(text):
        key = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", match[0]).casefold()))
        yield _Word(key, *match.span())


def _align(wanted: list[str], there: list[str]) -> list[int | None]:
    """Which word of the page each word of the text is; None where it is not on the page.

    From the longest run of equal words outwards, as long as the words between are about as many on both sides: what
    lies on another page must not be found in the odd "the" of this one.
    """
    places: list[int | None] = [None] * len(wanted)
    runs = difflib.SequenceMatcher(None, wanted, there, autojunk=False).get_matching_blocks()[:-1]
    if not runs:
        return places
    longest = max(range(len(runs)), key=lambda index: runs[index].size)
    for outwards in (runs[longest:], runs[longest::-1]):
        last = runs[longest]
        for run in outwards:
            if abs((run.b - run.a) - (last.b - last.a)) <= RUNNING:
                places[run.a : run.a + run.size] = range(run.b, run.b + run.size)
                last = run
    return places


def _rectangle(characters: PdfTextPage, index: int) -> _Rectangle:
    """A character's place: the font's own box, which makes a line even, and the ink's, which may leave it."""
    loose, ink = (_Rectangle(*characters.get_charbox(index, loose)) for loose in (True, False))
    return loose.around(ink)


def _as_seen(page: PdfPage, rectangle: _Rectangle) -> Box:
    """PDFium knows how the page is cropped and turned."""
    from pypdfium2 import raw

    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for corner in (rectangle[:2], rectangle[2:]):
        raw.FPDF_PageToDevice(page, 0, 0, GRID, GRID, 0, *corner, x, y)
        corners.append((x.value / GRID, y.value / GRID))
    xs, ys = zip(*corners, strict=True)
    return Box(min(xs), min(ys), max(xs), max(ys))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a PNG (RFC 2083), every row by its differences from the row above."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, width * 3)
    filtered = np.full((height, 1 + width * 3), 2, np.uint8)  # filter type 2, "up"
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros((1, width * 3), np.uint8))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
