"""Whatever the format and the script, a passage is exactly the characters start:end of the book's text."""

import html
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import docx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_books import pdf_bytes, write_epub, xhtml

import mamba_ssm
from mamba_ssm.book.blocks import text_blocks
from mamba_ssm.book.find import Window
from mamba_ssm.text import read_pieces
from mamba_ssm.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(Path(mamba_ssm.__file__).parent / "weights" / "default")
# Left to right and right to left, of one to four bytes, with marks that join, and signs that mean something to a format
WORDS = ["leaf", "Zürich", "e\u0301tude", "葉緑体", "光合成は", "الكلوروفيل", "שלום", "\u200fעברית\u200e", "Хлоропласт"]
WORDS += ["🌱", "👩\u200d🌾", "हिन्दी", "ไทย", "1984", "a_b", "x<y", "&amp;", "50%", "*", "#", "don’t", "“so”", "--"]
PARAGRAPHS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=6)


def plain(path: Path, paragraphs: list[str]) -> None:
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")


def titled(path: Path, paragraphs: list[str]) -> None:
    path.write_text("\n\n".join(f"{p}\n{'=' * 99}\n\n{p}" for p in paragraphs), encoding="utf-8")


def shift_jis(path: Path, paragraphs: list[str]) -> None:
    path.write_bytes("\n".join(["葉緑体は植物の細胞にあります。", *paragraphs]).encode("shift_jis", "replace"))


def utf_16(path: Path, paragraphs: list[str]) -> None:
    path.write_bytes("\n\n".join(paragraphs).encode("utf-16"))


def markup(paragraphs: list[str]) -> str:
    cells = "".join(f"<td>{html.escape(p)}</td>" for p in paragraphs)
    blocks = "".join(f"<h2>{html.escape(p)}</h2><pre>{html.escape(p)}\n  x</pre>" for p in paragraphs)
    return f"{blocks}<table><tr>{cells}</tr><tr>{cells}</tr></table>"


def web_page(path: Path, paragraphs: list[str]) -> None:
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{markup(paragraphs)}", encoding="utf-8")


def epub(path: Path, paragraphs: list[str]) -> None:
    write_epub(path, {"a.xhtml": xhtml(markup(paragraphs)), "b.xhtml": xhtml(markup(paragraphs[:1]))})


def word(path: Path, paragraphs: list[str]) -> None:
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_heading(paragraph, 1)
        document.add_paragraph(paragraph)
    table = document.add_table(1, len(paragraphs))
    for cell, paragraph in zip(table.rows[0].cells, paragraphs, strict=True):
        cell.text = paragraph
    document.save(str(path))


def notebook(path: Path, paragraphs: list[str]) -> None:
    cells = [{"cell_type": kind, "source": f"# {p}\n{p}"} for p in paragraphs for kind in ("markdown", "code")]
    path.write_text(json.dumps({"cells": cells}))


def pdf(path: Path, paragraphs: list[str]) -> None:
    lines = ["".join(char for char in p if char <= "\uffff") for p in paragraphs]
    path.write_bytes(pdf_bytes([[*lines, "and photo-"], lines, lines], labels="0 << /S /r >> 1 << /S /D >>"))


def folder(path: Path, paragraphs: list[str]) -> None:
    path.mkdir(exist_ok=True)
    for number, paragraph in enumerate(paragraphs):
        (path / f"{number}.md").write_text(f"# {paragraph}\n{paragraph}", encoding="utf-8")


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "book.txt": plain,
    "japanese.txt": shift_jis,
    "wide.txt": utf_16,
    "book.md": titled,
    "book.rst": titled,
    "book.tex": plain,
    "book.html": web_page,
    "book.epub": epub,
    "book.docx": word,
    "book.ipynb": notebook,
    "book.pdf": pdf,
    "book": folder,
}


@pytest.mark.parametrize("name", WRITERS)
@given(paragraphs=PARAGRAPHS, size=st.integers(2, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_every_window_is_a_slice_of_the_text(tmp_path: Path, name: str, paragraphs: list[str], size: int) -> None:
    WRITERS[name](tmp_path / name, paragraphs)
    pieces = list(read_pieces(tmp_path / name))
    text = "".join(piece.text for piece in pieces)
    places = [(piece.page, piece.section, piece.label) for piece in pieces for _ in piece.text]
    assert text.encode("utf-8").decode("utf-8") == text  # what the command prints comes back as it was
    end = 0
    for block in text_blocks(pieces, TOKENIZER, size):
        for length, margin in {(1, 0), (2, 1), (len(block.ids), 0), (2, len(block.ids))}:
            for first in range(block.first, block.first + len(block.ids) - length + 1):
                window = Window.of(block, first, SimpleNamespace(window=length, margin=margin))
                assert window.own_ids.tolist() == block.ids[first - block.first :][:length].tolist()
                passage = window.passage(0.0)
                assert passage.text == text[passage.start : passage.end] == passage.text.strip()
                if passage.text:
                    assert (passage.page, passage.section, passage.label) == places[passage.start]
        assert np.all(block.starts[1:] >= block.starts[:-1])
        end = block.offset + len(block.text)
    assert end == len(text)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("book.tex", "book.pdf", "japanese.txt")])
@given(paragraphs=PARAGRAPHS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
def test_no_script_loses_a_word(tmp_path: Path, name: str, paragraphs: list[str]) -> None:
    WRITERS[name](tmp_path / name, paragraphs)
    text = "".join(piece.text for piece in read_pieces(tmp_path / name))
    assert all(paragraph in text for paragraph in paragraphs)


def test_a_book_of_another_kind_under_a_false_name_is_told_by_its_content(tmp_path: Path) -> None:
    word(tmp_path / "letter.txt", ["words"])
    assert zipfile.is_zipfile(tmp_path / "letter.txt")
    assert "".join(piece.text for piece in read_pieces(tmp_path / "letter.txt")).split() == ["words"] * 3
