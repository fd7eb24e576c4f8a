"""Word documents, written by python-docx: headings, tables and listings are kept, and hostile archives refused."""

import contextlib
import tracemalloc
import zipfile
from pathlib import Path

import docx
import pytest
from docx.oxml import parse_xml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import BookError
from mamba_ssm.text import read_pieces

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@pytest.fixture
def document():
    return docx.Document()


def pieces(document, path: Path) -> list[tuple[str | None, str]]:
    document.save(str(path))
    return [(piece.section, piece.text) for piece in read_pieces(path)]


def text(document, path: Path) -> str:
    return "".join(part for _, part in pieces(document, path))


def test_headings_open_sections(document, tmp_path: Path) -> None:
    document.add_heading("The Plant", 0)
    document.add_paragraph("Preface.")
    document.add_heading("8 Light", 1)
    document.add_paragraph("Leaves are ").add_run("green").bold = True
    own = document.styles.add_style("Our Heading", 1)
    own.base_style = document.styles["Heading 2"]
    document.add_paragraph("8.1 Dusk", own)
    document.add_paragraph("Dark.")
    assert pieces(document, tmp_path / "no-suffix") == [
        ("The Plant", "The Plant\n\nPreface.\n\n"),
        ("8 Light", "8 Light\n\nLeaves are green\n\n"),
        ("8.1 Dusk", "8.1 Dusk\n\nDark.\n\n"),
    ]


def test_a_table_gives_a_line_a_row_and_a_frame_keeps_its_lines(document, tmp_path: Path) -> None:
    table = document.add_table(2, 2)
    for row, cells in enumerate([("Code", "Meaning"), ("1", "general\nerror")]):
        for column, cell in enumerate(cells):
            table.cell(row, column).text = cell
    frame = document.add_table(1, 1).cell(0, 0)
    frame.text = "def f():"
    frame.add_paragraph("    return 1")
    document.add_paragraph("End.")
    assert text(document, tmp_path / "book.docx") == (
        "Code | Meaning\n1 | general error\n\ndef f():\n    return 1\n\nEnd.\n\n"
    )


def test_tabs_and_line_ends_are_kept_and_tab_stops_are_not_text(document, tmp_path: Path) -> None:
    paragraph = document.add_paragraph("one\ttwo\nthree")
    paragraph.paragraph_format.tab_stops.add_tab_stop(914400)
    assert text(document, tmp_path / "book.docx") == "one\ttwo\nthree\n\n"


def test_text_that_was_changed_is_read_as_it_stands(document, tmp_path: Path) -> None:
    added = f"<w:ins {W}><w:r><w:t>new</w:t></w:r></w:ins>"
    gone = f"<w:del {W}><w:r><w:delText>old</w:delText></w:r></w:del>"
    moved = f"<w:moveFrom {W}><w:r><w:t>elsewhere</w:t></w:r></w:moveFrom>"
    paragraph = document.add_paragraph("It is ")
    for change in (gone, moved, added):
        paragraph._p.append(parse_xml(change))
    assert text(document, tmp_path / "book.docx") == "It is new\n\n"


def test_the_table_of_contents_is_left_out(document, tmp_path: Path) -> None:
    contents = document.styles.add_style("toc 1", 1)
    document.add_paragraph("Light\t8", contents)
    document.add_heading("Light", 1)
    assert text(document, tmp_path / "book.docx") == "Light\n\n"


def rewritten(path: Path, name: str, change) -> Path:
    """The same archive with one member changed, or added where it is missing."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[name] = change(members.get(name, b""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


@pytest.fixture
def saved(document, tmp_path: Path) -> Path:
    document.add_heading("Light", 1)
    document.add_paragraph("Leaves.")
    document.save(str(tmp_path / "book.docx"))
    return tmp_path / "book.docx"


def fails(path: Path, message: str) -> None:
    with pytest.raises(BookError, match=message) as caught:
        list(read_pieces(path))
    assert "\n" not in str(caught.value)


def test_footnotes_come_at_the_end(saved: Path) -> None:
    note = f"<w:footnotes {W}><w:footnote><w:p><w:r><w:t>Not all.</w:t></w:r></w:p></w:footnote></w:footnotes>"
    path = rewritten(saved, "word/footnotes.xml", lambda _: note.encode())
    assert "".join(piece.text for piece in read_pieces(path)) == "Light\n\nLeaves.\n\nNot all.\n\n"


def test_a_document_is_streamed(saved: Path) -> None:
    body = "</w:t></w:r></w:p><w:p><w:r><w:t>".join(f"Leaf {number + 10**15}." for number in range(60_000))
    rewritten(saved, "word/document.xml", lambda data: data.replace(b"Leaves.", body.encode()))
    tracemalloc.start()
    count = sum(len(piece.text) for piece in read_pieces(saved))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 1_400_000
    assert used < 0.8 * len(body)  # a tree of it takes many times as much as the document


def test_a_document_type_is_refused(saved: Path) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    path = rewritten(saved, "word/document.xml", lambda data: bomb + data.partition(b"?>")[2])
    fails(path, "declares a document type, as no .docx may; save the document again")


def test_a_zip_bomb(saved: Path) -> None:
    path = rewritten(saved, "word/document.xml", lambda data: data.replace(b"Leaves.", b"x" * (8 << 20)))
    fails(path, r"'word/document\.xml' unpacks to too much; this looks like a zip bomb")


def test_endless_nesting_is_refused(saved: Path) -> None:
    deep = b"<w:sdt>" * 100_000 + b"Leaves." + b"</w:sdt>" * 100_000
    fails(rewritten(saved, "word/document.xml", lambda data: data.replace(b"Leaves.", deep)), "nested too deeply")


@pytest.mark.parametrize("encoding", ["rot13", "shift_jis", "no-such"])
def test_an_encoding_that_xml_does_not_have(saved: Path, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>'.encode()
    fails(rewritten(saved, "word/document.xml", lambda data: head + data.partition(b"?>")[2]), "damaged; download")


def test_a_word_document_of_the_old_kind(tmp_path: Path) -> None:
    path = tmp_path / "letter.doc"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    fails(path, r"old or encrypted Word document; save it as \.docx")


@given(at=st.floats(0, 1), junk=st.binary(max_size=30), cut=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_docx_fails_in_no_other_way(saved: Path, tmp_path: Path, at: float, junk: bytes, cut: bool) -> None:
    data = saved.read_bytes()
    place = int(at * len(data))
    (tmp_path / "damaged.docx").write_bytes(data[:place] + junk + (b"" if cut else data[place + len(junk) :]))
    with contextlib.suppress(BookError):  # and nothing else
        list(read_pieces(tmp_path / "damaged.docx"))


@given(junk=st.text("<>/&;\"'= wptblrcsd:xmln0\x00é", max_size=60), at=st.floats(0, 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_damaged_xml_fails_in_no_other_way(saved: Path, junk: str, at: float) -> None:
    def change(data: bytes) -> bytes:
        place = int(at * len(data))
        return data[:place] + junk.encode() + data[place:]

    with zipfile.ZipFile(saved) as archive:
        original = archive.read("word/document.xml")
    with contextlib.suppress(BookError):  # and nothing else
        list(read_pieces(rewritten(saved, "word/document.xml", change)))
    rewritten(saved, "word/document.xml", lambda _: original)
