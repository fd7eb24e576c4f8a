"""A folder is a book: its files in the order of their chapters, and nothing else that lies there."""

import os
from pathlib import Path

import pytest
from make_books import pdf_bytes

from mamba_ssm.errors import BookError
from mamba_ssm.text import folder as folder_module
from mamba_ssm.text import read_pieces


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def text(folder: Path) -> str:
    return "".join(piece.text for piece in read_pieces(folder))


def test_chapters_come_in_natural_order_under_their_names(tmp_path: Path) -> None:
    write(
        tmp_path,
        Chapter_10_DOT_md="# Ten\nten",
        chapter_2_DOT_txt="two",
        part_10__1_DOT_html="<p>late",
        part_9__20_DOT_rst="Twenty\n======\ntwenty",
        part_9__3_DOT_tex=r"\section{Three} three",
    )
    assert [(piece.section, " ".join(piece.text.split())) for piece in read_pieces(tmp_path) if piece.text.strip()] == [
        ("chapter_2", "two"),
        ("Ten", "# Ten ten"),
        ("Three", "Three three"),
        ("Twenty", "Twenty ====== twenty"),
        ("1", "late"),
    ]


def test_pages_of_a_pdf_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bytes([["One."], ["Two."]]))
    write(tmp_path, b_DOT_md="Three.")
    assert [(p.page, p.section, p.text.strip()) for p in read_pieces(tmp_path) if p.text.strip()] == [
        (1, "a", "One."),
        (2, "a", "Two."),
        (None, "b", "Three."),
    ]


def test_what_is_no_chapter_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, _DOT_hidden_DOT_md="no", _DOT_git__config_DOT_txt="no", a_DOT_md="yes", empty_DOT_md="")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" + bytes(99))
    (tmp_path / "program").write_bytes(b"\x7fELF" + bytes(99))
    assert text(tmp_path).split() == ["yes"]


def test_a_page_that_a_browser_saved(tmp_path: Path) -> None:
    write(tmp_path, page_DOT_html="<h1>Page</h1><p>words", page_files__advertisement_DOT_html="<p>buy")
    assert text(tmp_path).split() == ["Page", "words"]
    assert "".join(piece.text for piece in read_pieces(tmp_path / "page.html")).split() == ["Page", "words"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    write(tmp_path, outside__secret_DOT_md="secret", book__a_DOT_md="words")
    (tmp_path / "book" / "b.md").symlink_to(tmp_path / "outside" / "secret.md")
    (tmp_path / "book" / "c").symlink_to(tmp_path / "outside")
    (tmp_path / "book" / "loop").symlink_to(tmp_path / "book")
    (tmp_path / "book" / "gone.md").symlink_to(tmp_path / "nowhere")
    assert text(tmp_path / "book").split() == ["words"]


def test_too_many_files_are_no_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "ENTRIES", 3)
    write(tmp_path, **{f"{n}_DOT_md": "x" for n in range(5)})
    with pytest.raises(BookError, match="more than 3 files; give the folder of one book"):
        text(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_DOT_md="fine")
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7 junk")
    with pytest.raises(BookError, match=r"b\.pdf: a damaged PDF"):
        text(tmp_path)


def test_only_white_space(tmp_path: Path) -> None:
    write(tmp_path, a_DOT_md=" \n", b_DOT_txt="\n")
    with pytest.raises(BookError, match="nothing but white space"):
        text(tmp_path)
