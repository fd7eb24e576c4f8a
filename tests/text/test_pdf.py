"""PDF: pages are numbered, divided words joined, the outline names sections, and what cannot be read is said."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_books import encrypted_pdf_bytes, pdf_bytes

from mamba_ssm.errors import BookError
from mamba_ssm.text import Piece, read_pieces
from mamba_ssm.text.pdf import clean, join_words

PAGES = [
    ["Chapter 1. Light", "Leaves live by photo-", "synthesis, as the Anglo-", "Saxons knew."],
    ["Still light.", "Chapter 2. Water", "Roots drink."],
    [],
    ["More water."],
]
OUTLINE = [("Chapter 1. Light", 0), ("Chapter 2.  WATER", 1)]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_pages_and_sections(tmp_path: Path) -> None:
    path = write(tmp_path / "book", pdf_bytes(PAGES, OUTLINE))  # told by content: the name has no suffix
    one, two = "Chapter 1. Light", "Chapter 2. WATER"
    assert list(read_pieces(path)) == [
        Piece("Chapter 1. Light\nLeaves live by photosynthesis, as the Anglo-Saxons knew.\n", 1, one),
        Piece("Still light.\n", 2, one),
        Piece("Chapter 2. Water\nRoots drink.\n", 2, two),
        Piece("More water.\n", 4, two),
    ]


def test_labels_are_what_is_printed_on_pages(tmp_path: Path) -> None:
    labels = "0 << /S /r >> 2 << /S /D /St 187 >>"
    path = write(tmp_path / "book.pdf", pdf_bytes(PAGES, labels=labels))
    assert [(piece.page, piece.label) for piece in read_pieces(path)] == [(1, "i"), (2, "ii"), (4, "188")]


def test_names_that_are_no_text_are_none(tmp_path: Path) -> None:
    half_a_character = b"<FEFFD800D800>"
    data = pdf_bytes(PAGES, [("Intro", 0)], labels="0 << /P (Intro) >>").replace(b"(Intro)", half_a_character)
    pieces = list(read_pieces(write(tmp_path / "book.pdf", data)))
    assert {(piece.section, piece.label) for piece in pieces} == {(None, None)}


def test_without_an_outline_there_are_no_sections(tmp_path: Path) -> None:
    path = write(tmp_path / "book.pdf", pdf_bytes(PAGES))
    assert [(piece.page, piece.section) for piece in read_pieces(path)] == [(1, None), (2, None), (4, None)]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("photo-\r\nsynthesis", "photosynthesis\n"),
        ("photo\x02synthesis", "photosynthesis\n"),
        ("photo\ufffe\r\nsynthesis", "photosynthesis\n"),
        ("Anglo-\r\nSaxon", "Anglo-Saxon\n"),
        ("pages 3-\r\n5 and -\r\nso", "pages 3-\n5 and -\nso\n"),
        ("well-known  \r\nline\x00", "well-known\nline\n"),
        (" \r\n", ""),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert join_words(clean(raw)) == cleaned


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pdf_bytes([[], []]), "no text layer; run OCR first, for example ocrmypdf"),
        (encrypted_pdf_bytes(), "encrypted PDF; remove its password first"),
        (pdf_bytes(PAGES)[:200], "damaged PDF"),
        (b"%PDF-1.7\n\x00\x01 junk", "damaged PDF"),
        (b"text in a file that calls itself PDF", "damaged PDF"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BookError, match=message) as caught:
        list(read_pieces(write(tmp_path / "book.pdf", data)))
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    data = pdf_bytes(PAGES).replace(b"[4 0 R 6 0 R 8 0 R 10 0 R]", b"[4 0 R 6 0 R 3 0 R 10 0 R]")
    with pytest.raises(BookError, match="page 3 is damaged"):
        list(read_pieces(write(tmp_path / "book.pdf", data)))


@given(at=st.integers(0, 2000), junk=st.binary(min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_pdf_fails_in_no_other_way(tmp_path: Path, at: int, junk: bytes) -> None:
    data = bytearray(pdf_bytes(PAGES, OUTLINE))
    data[at : at + len(junk)] = junk
    with contextlib.suppress(BookError):  # and nothing else
        list(read_pieces(write(tmp_path / "book.pdf", bytes(data))))
