"""Text and Markdown: what is read is what is in the file, whatever the encoding, the line ends and the sizes."""

import codecs
import contextlib
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import BookError
from mamba_ssm.text import Piece, read_pieces
from mamba_ssm.text.piece import pack

# Everything but lone surrogates, and control characters apart from line ends and tabs
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\r\t "))
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path) -> str:
    return "".join(piece.text for piece in read_pieces(path))


def normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ""])
@given(text=TEXT)
@IN_ONE_FOLDER
def test_any_text_comes_back_as_it_is(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"book{suffix}"
    # A word in front, lest the content be taken for HTML, PDF or a zip file, or a mark for the encoding's
    path.write_bytes(("word " + text).encode())
    assert read(path) == normal("word " + text)


@given(
    parts=st.lists(st.tuples(st.text(max_size=30), st.none() | st.integers(1, 3), st.sampled_from([None, "A", "B"]))),
    size=st.integers(1, 20),
)
def test_packing_keeps_every_character_in_its_place(parts: list[tuple[str, int | None, str | None]], size: int) -> None:
    packed = list(pack((Piece(*part) for part in parts), size))
    assert all(0 < len(piece.text) <= size for piece in packed)
    places = [(char, piece.page, piece.section) for piece in packed for char in piece.text]
    assert places == [(char, page, section) for text, page, section in parts for char in text]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-8", b""),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("cp1252", b""),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, mark: bytes) -> None:
    text = "Les chloroplastes – “organites” – des végétaux.\nLà, la lumière donne de l’énergie.\n"
    path = tmp_path / "book.txt"
    path.write_bytes(mark + text.encode(encoding))
    assert read(path) == text


@pytest.mark.parametrize("name", ["book.md", "book.rst", "book.tex", "book.html"])
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16", "Die Größe der Zelle – 葉緑体."),
        ("utf-16-le", "Die Größe der Zelle ist für die Pflanze schön."),
        ("utf-16-be", "The leaf is green."),
        ("latin-1", "Die Größe der Zelle ist für die Pflanze schön."),
        ("cp1252", "He said “this is it” – and left for a café."),
        ("shift_jis", "葉緑体は植物の細胞にあります。光合成はここで行われます。"),
    ],
)
def test_every_kind_of_text_file_is_in_any_encoding(tmp_path: Path, name: str, encoding: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(f"{text}\n".encode(encoding))
    assert read(path).strip() == text


@pytest.mark.parametrize("before", ["", "The leaf is green. " * 80_000], ids=["alone", "after 1.5 MB of English"])
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "À la première lumière, où est la forêt? Ça va très bien, à bientôt. "),
        ("cp1252", "¿Dónde está el niño pequeño? Mañana habrá más calor según el periódico. "),
        ("cp1252", "As plantas não são animais; a fotossíntese é o coração da produção. "),
        ("cp1252", "Växter använder ljus från solen för att göra föda åt oss. "),
        ("cp1252", "Die Größe der Zelle ist für die Pflanze schön. "),
        ("cp1252", "He said “this is it” – and left for a café. "),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy, neboť byl šťastný. "),
        ("iso8859-2", "Zielona roślina żyje dzięki światłu i wodzie. "),
        ("cp1251", "Хлоропласты — органоиды растений. В них идёт фотосинтез. "),
        ("koi8-r", "Хлоропласты органоиды растений. В них идёт фотосинтез. "),
        ("cp1253", "Οι χλωροπλάστες βρίσκονται στα φυτά. "),
        ("shift_jis", "葉緑体は植物の細胞にあります。光合成はここで行われます。"),
        ("gb18030", "叶绿体是植物细胞中的细胞器。光合作用在这里进行。"),
    ],
)
def test_encodings_that_must_be_guessed(tmp_path: Path, encoding: str, text: str, before: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes((before + text * 20).encode(encoding))
    assert read(path) == before + text * 20


def test_utf8_that_is_damaged_in_one_place_stays_utf8(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("Végétaux éclairés. ".encode() * 50 + b"\xff" + "Énergie".encode())
    assert read(path) == "Végétaux éclairés. " * 50 + "\ufffdÉnergie"


def test_long_runs_without_white_space_are_no_burden(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    path.write_bytes(b"# " + b"# " * 20_000 + b"A" * 900_000 + "été ".encode("cp1252"))
    assert read(path).endswith("AAAété ")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(megabytes: int, line: bytes) -> int:
        path = tmp_path / "book.txt"
        path.write_bytes(line * (megabytes * 1_000_000 // len(line)))
        tracemalloc.start()
        count = sum(len(piece.text) for piece in read_pieces(path))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count > 900_000 * megabytes
        return used

    for line in (b"A leaf is green because of chlorophyll.\n" * 20, b"no line end "):
        assert peak(8, line) < 1.1 * peak(3, line) + 100_000


def test_markdown_headings_are_sections_and_comments_in_code_are_not(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    text = "Before\n# One #\ntext\n```sh\n# no heading\n```\n## Two\nmore\n#hashtag\n~~~\n# no\n```\n# no\n~~~\nend\n"
    path.write_text(text, encoding="utf-8")
    pieces = list(read_pieces(path))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.section for piece in pieces] == [None, "One", "Two"]
    assert pieces[2].text.startswith("## Two\n")


def test_underlined_headings_of_markdown_are_sections(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    text = (
        "---\ndate: today\n---\n\nOne\n===\ntext\n---\nTwo\n---\n\nThree\n-----\n- item\n---\n\n> quote\n---\n\nFour\n="
    )
    path.write_text(text, encoding="utf-8")
    pieces = list(read_pieces(path))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.section for piece in pieces] == [None, "One", "Three", "Four"]
    assert pieces[2].text.startswith("Three\n-----\n")


def test_titles_of_restructured_text_are_sections(tmp_path: Path) -> None:
    path = tmp_path / "book.rst"
    text = """Before

==============
 1 The Plant
==============
1.1 :mod:`light` --- ``Light``
------------------------------

Leaves::

    Not a title
    ===========

Too short
==

----

A transition above.

=====  =====
A      B
=====  =====

.. include:: /etc/passwd

.. raw:: html
   :file: /etc/passwd

水の道
~~~~~~
"""
    path.write_text(text, encoding="utf-8")
    pieces = list(read_pieces(path))
    assert "".join(piece.text for piece in pieces) == text  # as it is: nothing was included
    assert [piece.section for piece in pieces] == [None, "1 The Plant", "1.1 light --- Light", "水の道"]
    assert pieces[1].text.startswith("====")


def test_chapters_of_plain_text_are_sections(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(
        "Preface\n\nCHAPTER I. Light\n\nLeaves.\nChapter 2 is next.\n\nBook a seat.\n\nChapter Two\n\nRoots.\n",
        encoding="utf-8",
    )
    assert [piece.section for piece in read_pieces(path)] == [None, "CHAPTER I. Light", "Chapter Two"]


@pytest.mark.parametrize("name", ["book.txt", "book.md", "book.rst", "book.html", "book.tex", "book.ipynb", "book"])
@given(data=st.binary(max_size=300))
@IN_ONE_FOLDER
def test_any_bytes_give_text_or_a_book_error(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with contextlib.suppress(BookError):  # and nothing else
        pieces = list(read_pieces(path))
        assert "".join(piece.text for piece in pieces).strip()
        assert pieces == list(read_pieces(path))
