"""Build examples/abs-guide.md, the Advanced Bash-Scripting Guide, from Debian's package of it (public domain).

Run: python scripts/make_example_book.py [--deb FILE]
Without --deb the package is fetched with `apt-get download`. The result is the same each time: the package is pinned.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

from mamba_ssm.text.html import html_pieces

VERSION = "10-4"
SHA256 = "2432950da65e559b986f593c09a6d0dd6bc9f3bea83fa115774791066108ecd9"
PAGES = "usr/share/doc/abs-guide/html"
LEFT_OUT = ("xrefindex.html", "mirrorsites.html", "todolist.html")  # an index of links, dead links, an empty list
NEXT = re.compile(r'REL="NEXT"\s+TITLE="[^"]*"\s+HREF="([^"]+)"')
# Navigation bars, tables of contents, and the line numbers' own column are the web site's, not the book's.
FURNITURE = re.compile(r'<DIV\s+CLASS="(?:NAVHEADER|NAVFOOTER|TOC|LOT)".*?</DIV\s*>', re.S)
FOOTNOTES = re.compile(r'<H3\s+CLASS="FOOTNOTES"\s*>Notes</H3\s*>')
HEADING = re.compile(r"<H([1-6])\b[^>]*>")
LISTING = re.compile(r"<PRE\b[^>]*>(.*?)</PRE\s*>", re.S)
LINE_NUMBERS = re.compile(r"^ *\d+(?:&nbsp;)?")


def fetch(folder: Path) -> Path:
    """The pinned package, by way of apt's own checks."""
    subprocess.run(["apt-get", "download", f"abs-guide={VERSION}"], cwd=folder, check=True)
    return next(folder.glob("abs-guide_*.deb"))


def reading_order(pages: Path) -> list[str]:
    """Names of the pages from the first to the last, by their links."""
    names, name = [], "index.html"
    while name not in names:
        names.append(name)
        if found := NEXT.search((pages / name).read_text(encoding="latin-1")):
            name = found[1]
    return names


def listing(match: re.Match[str]) -> str:
    """A listing as fenced code, its line numbers removed where every line has one in sequence."""
    lines = match[1].strip("\n").split("\n")
    numbers = [re.match(r" *(\d+)", line) for line in lines]
    if [found and int(found[1]) for found in numbers] == list(range(1, len(lines) + 1)):
        lines = [LINE_NUMBERS.sub("", line) for line in lines]
    return "<pre>```\n" + "\n".join(lines) + "\n```</pre>"


def page_text(markup: str) -> str:
    """One page of the guide as Markdown."""
    markup = FOOTNOTES.sub("<p>Notes</p>", FURNITURE.sub("", markup))
    markup = HEADING.sub(lambda match: f"{match[0]}{'#' * int(match[1])} ", LISTING.sub(listing, markup))
    text = "".join(piece.text for piece in html_pieces(markup))
    return re.sub(r"[ \xa0]+$", "", text.replace("\xa0", " "), flags=re.M)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deb", type=Path, help="the package, if it is already here")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parents[1] / "examples" / "abs-guide.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = arguments.deb or fetch(folder)
        if (found := hashlib.sha256(package.read_bytes()).hexdigest()) != SHA256:
            raise SystemExit(f"{package}: sha256 {found}, not {SHA256}; fetch abs-guide {VERSION}")
        subprocess.run(["dpkg", "-x", str(package), str(folder / "x")], check=True)
        pages = folder / "x" / PAGES
        texts = [
            page_text((pages / page).read_text(encoding="latin-1"))
            for page in reading_order(pages)
            if page not in LEFT_OUT
        ]
    arguments.output.write_text("\n".join(texts), encoding="utf-8", newline="\n")
    print(f"{arguments.output}: {sum(map(len, texts)):,} characters from {len(texts)} pages")


if __name__ == "__main__":
    main()
