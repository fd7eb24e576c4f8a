"""EPUB: chapters in reading order under the titles of the table of contents, and hostile archives refused."""

import contextlib
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_books import CONTAINER, nav, ncx, write_epub, xhtml

from mamba_ssm.errors import BookError
from mamba_ssm.text import archive as archive_module
from mamba_ssm.text import read_pieces

CHAPTERS = {
    "text/a.xhtml": xhtml("<h1>Light</h1><p>Leaves.</p><h2>Dusk</h2><p>Dark.</p>"),
    "text/b.xhtml": xhtml("<p>Still dusk.</p>"),
    "text/c%20d.xhtml": xhtml("<p>Almost.</p><div id='w'><h2>Water</h2><p>Roots.</p></div>"),
}
FILES = {name.replace("%20", " "): text for name, text in CHAPTERS.items()}
ENTRIES = [("text/a.xhtml", "Chapter 1. Light"), ("text/c%20d.xhtml#w", "Chapter 2. Water")]


def sections(path: Path) -> list[tuple[str | None, str]]:
    return [(piece.section, " ".join(piece.text.split())) for piece in read_pieces(path)]


@pytest.mark.parametrize("contents", [("nav.xhtml", nav(ENTRIES)), ("toc.ncx", ncx(ENTRIES))])
def test_titles_come_from_the_table_of_contents(tmp_path: Path, contents: tuple[str, str]) -> None:
    path = write_epub(tmp_path / "book.epub", FILES, contents)
    assert sections(path) == [
        ("Chapter 1. Light", "Light Leaves."),
        ("Dusk", "Dusk Dark. Still dusk. Almost."),
        ("Chapter 2. Water", "Water Roots."),
    ]


PAGES = {
    "a.xhtml": xhtml("<p>Before. <span id='p9'/>Nine <a id='p10'></a>ten.</p>"),
    "b.xhtml": xhtml("<p>Still ten.</p><h1 id='p11'>Eleven</h1>"),
}
LABELS = [("a.xhtml#p9", "ix"), ("a.xhtml#p10", "10"), ("b.xhtml#p11", "11")]
PAGE_LIST = "".join(f'<li><a href="{href}">{name}</a></li>' for href, name in LABELS)
PAGE_TARGETS = "".join(
    f'<pageTarget><navLabel><text>{name}</text></navLabel><content src="{href}"/></pageTarget>' for href, name in LABELS
)


@pytest.mark.parametrize(
    "contents",
    [
        (
            "nav.xhtml",
            nav([("a.xhtml", "A")]).replace("</body>", f'<nav epub:type="page-list"><ol>{PAGE_LIST}</ol></nav></body>'),
        ),
        ("toc.ncx", ncx([("a.xhtml", "A")]).replace("</ncx>", f"<pageList>{PAGE_TARGETS}</pageList></ncx>")),
    ],
)
def test_pages_of_the_printed_book_are_labels(tmp_path: Path, contents: tuple[str, str]) -> None:
    path = write_epub(tmp_path / "book.epub", PAGES, contents)
    places = [(piece.page, piece.label, piece.section, " ".join(piece.text.split())) for piece in read_pieces(path)]
    assert places == [
        (None, None, "A", "Before."),
        (None, "ix", "A", "Nine"),
        (None, "10", "A", "ten. Still ten."),
        (None, "11", "Eleven", "Eleven"),
    ]


def test_without_contents_headings_are_the_titles(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "no-suffix", FILES)
    assert [section for section, _ in sections(path)] == ["Light", "Dusk", "Water"]


def test_xml_with_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "book.epub"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", '<c:container><c:rootfile full-path="book.opf"/></c:container>')
        items = '<opf:manifest><opf:item id="a" href="a.xhtml"/><opf:item id="b" href="b.xhtml"/></opf:manifest>'
        spine = '<opf:spine><opf:itemref idref="b"/><opf:itemref idref="a"/></opf:spine>'
        archive.writestr("book.opf", f"<opf:package>{items}{spine}</opf:package>")
        archive.writestr("a.xhtml", xhtml("<p>second</p>", "<script src='x'/><title>A</title>"))
        archive.writestr("b.xhtml", xhtml("<p>first<a id='x'/> page</p>"))
    assert sections(path) == [(None, "first page"), ("A", "second")]


def test_the_spine_gives_the_order(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "book.epub", FILES, spine=["text/b.xhtml", "text/a.xhtml"])
    assert "".join(piece.text for piece in read_pieces(path)) == "Still dusk.\n\nLight\n\nLeaves.\n\nDusk\n\nDark.\n\n"


def encryption(algorithm: str, uri: str) -> dict[str, str]:
    data = f'<EncryptionMethod Algorithm="{algorithm}"/><CipherData><CipherReference URI="{uri}"/></CipherData>'
    return {"META-INF/encryption.xml": f"<encryption><EncryptedData>{data}</EncryptedData></encryption>"}


def test_protected_chapters_are_refused_and_scrambled_fonts_are_not(tmp_path: Path) -> None:
    locked = encryption("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "OEBPS/text/a.xhtml")
    with pytest.raises(BookError, match=r"protected by DRM \(1 chapters encrypted\); get a copy without DRM"):
        sections(write_epub(tmp_path / "book.epub", FILES, extra=locked))
    fonts = encryption("http://www.idpf.org/2008/embedding", "OEBPS/font.otf")
    assert sections(write_epub(tmp_path / "book.epub", FILES, extra=fonts))


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "book.epub", FILES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BookError, match=r"truncated or damaged EPUB or \.docx"):
        sections(path)


def test_a_damaged_chapter_is_named(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "book.epub", {"a.xhtml": xhtml("<p>one</p>"), "b.xhtml": xhtml(f"<p>{'x' * 200}</p>")})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("OEBPS/b.xhtml").header_offset + 30 + len("OEBPS/b.xhtml")
    data = bytearray(path.read_bytes())
    data[start + 5 : start + 25] = b"\xff" * 20
    path.write_bytes(bytes(data))
    with pytest.raises(BookError, match=r"'OEBPS/b.xhtml' in the file is damaged"):
        sections(path)


@pytest.mark.parametrize("limit", ["ARCHIVE_BYTES", "DOCUMENT_BYTES", "RATIO_FREE_BYTES"])
def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(archive_module, limit, 1 << 19)  # each of the three bounds alone
    path = write_epub(tmp_path / "book.epub", {"a.xhtml": xhtml("<p>" + "x" * (3 << 20) + "</p>")})
    with pytest.raises(BookError, match=r"'OEBPS/a\.xhtml' unpacks to too much; this looks like a zip bomb"):
        sections(path)


def test_an_archive_that_lies_about_sizes(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "book.epub", {"a.xhtml": xhtml("<p>" + "x" * (8 << 20) + "</p>")})
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("OEBPS/a.xhtml").file_size
    path.write_bytes(path.read_bytes().replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(BookError):
        sections(path)


def test_a_compression_that_epub_does_not_allow(tmp_path: Path) -> None:
    path = tmp_path / "book.epub"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
    with pytest.raises(BookError, match="zip it again with deflate"):
        sections(path)


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "ARCHIVE_MEMBERS", 5)
    with pytest.raises(BookError, match="more than 5 files"):
        sections(write_epub(tmp_path / "book.epub", FILES))


def test_entities_of_xml_are_not_expanded(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    text = xhtml("<p>&b;&f; end</p>").replace("<!DOCTYPE html>", bomb)
    (_, part), *_ = sections(write_epub(tmp_path / "book.epub", {"a.xhtml": text}))
    assert "haha" not in part
    assert "root" not in part
    assert part.endswith("end")


def test_a_zip_file_that_is_no_book(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.png", b"")
    with pytest.raises(BookError, match=r"neither an EPUB nor a \.docx; unpack it and give the folder"):
        sections(path)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("<package/>", "lists no chapters"),
        (
            '<manifest><item id="a" href="a.xhtml"/></manifest><spine><itemref idref="a"/></spine>',
            "'OEBPS/a.xhtml' is missing",
        ),
    ],
)
def test_a_package_without_its_chapters(tmp_path: Path, package: str, message: str) -> None:
    path = tmp_path / "book.epub"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", '<rootfile full-path="OEBPS/book.opf"/>')
        archive.writestr("OEBPS/book.opf", package)
    with pytest.raises(BookError, match=message):
        sections(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", '<rootfile full-path="OEBPS/book.opf"/>')
    with pytest.raises(BookError, match="without its package file"):
        sections(path)


@given(at=st.integers(0, 3000), junk=st.binary(min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_a_damaged_epub_fails_in_no_other_way(tmp_path: Path, at: int, junk: bytes) -> None:
    path = write_epub(tmp_path / "book.epub", FILES, ("nav.xhtml", nav(ENTRIES)))
    data = bytearray(path.read_bytes())
    data[at % len(data) : at % len(data) + len(junk)] = junk
    path.write_bytes(bytes(data))
    with contextlib.suppress(BookError):  # and nothing else
        sections(path)
