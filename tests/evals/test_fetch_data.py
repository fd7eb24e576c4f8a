"""Books out of Debian packages that are built here."""

import gzip
import shutil
import subprocess

import pytest
from fetch_data import Book, pages, sections
from fetch_more_text import definitions


def build(root, package):
    """A package of all that is below ``root``."""
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        "Package: book\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a book\n"
    )
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, package], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.parametrize(("contents", "order"), [("", ["a", "b", "c"]), ("index.html", ["c", "a", "b"])])
def test_pages_come_by_path_or_as_the_contents_page_links_them(tmp_path, contents, order):
    root = tmp_path / "root"
    html = root / "usr" / "html"
    html.mkdir(parents=True)
    for name in "abc":
        (html / f"{name}.html").write_text(name)
    (html / "index.html").write_text('<a href="c.html">1</a> <a href="a.html#x">2</a> <a href="b.html">3</a>')
    (html / "notes.txt").write_text("no page")
    package = tmp_path / "book.deb"
    build(root, package)
    book = Book("book", "1", "", "usr/html/", r"/index\.html$", contents)
    assert list(pages(package, book)) == order


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_dictionary_is_what_dictd_packed(tmp_path):
    text, share = "naïve\n   adj. simple\n", tmp_path / "root" / "usr" / "share"
    share.mkdir(parents=True)
    (share / "words.dict.dz").write_bytes(gzip.compress(text.encode()))
    build(tmp_path / "root", tmp_path / "words.deb")
    assert definitions(tmp_path / "words.deb", Book("words", "1", "", "usr/share/words.dict.dz", "^$")) == text


def test_a_page_is_cut_at_its_headings():
    page = """<html><head><title>Engines</title></head><body><nav><h2>Contents</h2></nav><p>Before.</p>
    <h1>The <em>great</em>
    engine<a class="headerlink">¶</a></h1><p>One.</p><div><h2>Its oil</h2><pre>a  b
c</pre></div><p>Two.</p><h2>Its end</h2></body></html>"""
    assert sections(page) == [("The great engine", "One."), ("Its oil", "a  b\nc\n\nTwo."), ("Its end", "")]
