"""The door: files that are no books get one line that says what is wrong and what to do."""

import os
import random
from pathlib import Path

import pytest

from mamba_ssm.errors import BookError
from mamba_ssm.text import read_pieces


def fails(path: Path, message: str) -> None:
    with pytest.raises(BookError, match=message) as caught:
        list(read_pieces(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what is wrong; what to do


def test_a_missing_file(tmp_path: Path) -> None:
    fails(tmp_path / "book.pdf", "no such file; check the path")


def test_an_empty_folder(tmp_path: Path) -> None:
    fails(tmp_path, "a folder without files of a book; give one with")


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".html", ".tex", ".ipynb", ".pdf", ".epub", ".docx", ""])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"book{suffix}"
    path.touch()
    fails(path, "the file is empty")


@pytest.mark.parametrize("name", ["book.txt", "book.md", "book.rst", "book.html", "book.tex", "book"])
def test_only_white_space(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b" \r\n\t" * 50_000)
    fails(path, "nothing but white space")


@pytest.mark.parametrize("name", ["book.txt", "book.md", "book.rst", "book.html", "book.tex", "book.bin"])
@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF\x02\x01\x01" + bytes(200),
        bytes(1000),
        random.Random(0).randbytes(5000),
        b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(2000),
        b"\x01\x02\x03text\x04" * 100,
    ],
)
def test_binary_junk(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    fails(path, "binary data; give a .txt, .md, .rst, .html, .tex")


def test_an_epub_that_is_no_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "book.epub"
    path.write_bytes(b"not a zip file")
    fails(path, "truncated or damaged EPUB")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "not a regular file")


def test_a_name_with_a_line_end_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(BookError) as caught:
        list(read_pieces(tmp_path / "two\nlines.txt"))
    assert "\n" not in str(caught.value)


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("words", encoding="utf-8")
    assert [piece.text for piece in read_pieces(str(tmp_path / "book.txt"))] == ["words"]
