"""Books out of Debian packages that are built here."""

import shutil
import subprocess

import pytest
from fetch_data import Book, pages


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.parametrize(("contents", "order"), [("", ["a", "b", "c"]), ("index.html", ["c", "a", "b"])])
def test_pages_come_by_path_or_as_the_contents_page_links_them(tmp_path, contents, order):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: book\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a book\n"
    )
    html = root / "usr" / "html"
    html.mkdir(parents=True)
    for name in "abc":
        (html / f"{name}.html").write_text(name)
    (html / "index.html").write_text('<a href="c.html">1</a> <a href="a.html#x">2</a> <a href="b.html">3</a>')
    (html / "notes.txt").write_text("no page")
    package = tmp_path / "book.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, package], check=True, capture_output=True)
    book = Book("book", "1", "", "usr/html/", r"/index\.html$", contents)
    assert list(pages(package, book)) == order
