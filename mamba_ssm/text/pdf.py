"""PDF to text, a page at a time, with page numbers, the labels that are printed on pages, and the outline's titles."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_ssm.errors import BookError
from mamba_ssm.text.encoding import normalise_newlines
from mamba_ssm.text.piece import Piece, title
from mamba_ssm.text.running_heads import without_running_heads

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

HEAD = 1024  # bytes in which a file says what it is
_PASSWORD = 4  # FPDF_ERR_PASSWORD
PDFIUM = threading.Lock()  # the library is not safe to enter from two threads
_MARK = re.compile("[\x02\ufffe]\n?")  # what PDFium writes for a hyphen that it takes for a line's end
_HYPHEN = re.compile("(?<=[^\\W\\d_])[-\u00ad\u2010]\n(?=[^\\W\\d_])")
_DIVIDED = re.compile("[^\\W\\d_][-\u00ad\u2010]\n$")
_JUNK = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufffe\uffff]")


def is_pdf(head: bytes) -> bool:
    """Whether a file that begins so is a PDF."""
    return head.lstrip().startswith(b"%PDF-")


def open_pdf(path: Path) -> PdfDocument:
    """Open a PDF. Whoever calls holds PDFIUM. Raises BookError for one that is encrypted or damaged."""
    import pypdfium2 as pdfium

    try:
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        if error.err_code == _PASSWORD:
            raise BookError("an encrypted PDF; remove its password first, for example with qpdf") from error
        raise BookError("a damaged PDF; download it again or repair it, for example with qpdf") from error


def read_pdf(path: Path) -> Iterator[Piece]:
    """Pieces of a PDF, page by page, some pages in memory; a page's end is a line's end, unless it divides a word."""
    import pypdfium2 as pdfium

    with PDFIUM:
        document = open_pdf(path)
    try:
        with PDFIUM:
            count, outline = len(document), _outline(document)
        section, empty = None, True

        def pages() -> Iterator[str]:
            nonlocal empty
            for index in range(count):
                try:
                    with PDFIUM:
                        text = _page_text(document, index)
                except pdfium.PdfiumError as error:
                    raise BookError(
                        f"page {index + 1} is damaged; repair the PDF first, for example with qpdf"
                    ) from error
                empty = empty and not text
                yield text

        for index, text in enumerate(_joined(map(join_words, without_running_heads(pages())))):
            with PDFIUM:
                label = _name(lambda: document.get_page_label(index))  # noqa: B023 - called at once
            for start, end, name in _sections(text, outline.get(index, []), section):
                section = name
                yield Piece(text[start:end], page=index + 1, section=section, label=label)
    finally:
        with PDFIUM:
            document.close()
    if empty:
        raise BookError("the PDF has no text layer; run OCR first, for example ocrmypdf")


def clean(raw: str) -> str:
    """A page's lines as they are printed: one kind of line end, no control characters."""
    text = _MARK.sub("-\n", normalise_newlines(raw))
    text = "\n".join(line.rstrip() for line in _JUNK.sub("", text).split("\n")).strip()
    return text + "\n" if text else ""


def join_words(text: str) -> str:
    """A page's text with the words joined that line ends divide."""
    return _HYPHEN.sub(_join, text)


def _join(match: re.Match[str]) -> str:
    # Before a capital or a letter without case the hyphen is the word's own, as in "Anglo-Saxon".
    return "" if match.string[match.end()].islower() else "-"


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """The texts of pages; where a page's end divides a word, its parts stand together, each on its page."""
    held: str | None = None
    for text in chain(texts, [""]):
        if held is not None:
            yield held[:-2] if _DIVIDED.search(held) and text[:1].islower() else held
        held = text


def _page_text(document: PdfDocument, index: int) -> str:
    page = document[index]
    try:
        return clean(page.get_textpage().get_text_bounded())
    finally:
        page.close()  # closes the text page too


def _name(get: Callable[[], str | None]) -> str | None:
    """A title or a label; what is no text, in a damaged file, names nothing."""
    try:
        return title(get() or "")
    except UnicodeDecodeError:
        return None


def _outline(document: PdfDocument) -> dict[int, list[str]]:
    """Titles of the outline by page index, in the outline's order."""
    titles: dict[int, list[str]] = {}
    for mark in document.get_toc():
        target = mark.get_dest()
        index = target.get_index() if target else None
        if index is not None and (name := _name(mark.get_title)):
            titles.setdefault(index, []).append(name)
    return titles


def _sections(text: str, titles: list[str], section: str | None) -> Iterator[tuple[int, int, str | None]]:
    """Cut a page where its outline titles stand on it; a title that does not stand there opens at the last cut."""
    start = 0
    for name in titles:
        found = re.compile(r"\s+".join(map(re.escape, name.split())), re.IGNORECASE).search(text, start)
        if found and found.start() > start:
            yield start, found.start(), section
            start = found.start()
        section = name
    yield start, len(text), section
