"""Fingerprints of texts, to prove from committed files alone that nothing held out was trained on."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mamba_ssm.errors import MambaESIError
from mamba_ssm.training.squad import Article

_WORDS = re.compile(r"[^\W_]+")
# Shorter paragraphs stand in many books alike: cross-references, notices of the GPL, snippets of code.
MINIMUM_WORDS = 25


class Fingerprints(NamedTuple):
    """Hashes, 16 hexadecimal digits each, of normalised titles and paragraphs."""

    titles: set[str]
    paragraphs: set[str]

    def shared_with(self, other: Fingerprints) -> set[str]:
        return (self.titles & other.titles) | (self.paragraphs & other.paragraphs)


def fingerprint(text: str) -> str:
    """The first 8 bytes of the SHA-256 of the words, so that case, spacing and punctuation hide no copy."""
    words = " ".join(_WORDS.findall(unicodedata.normalize("NFKC", text).casefold()))
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:16]


def fingerprints(articles: Iterable[Article], books: Mapping[str, str] | None = None) -> Fingerprints:
    """Of every title and paragraph of articles, and of books, {title: text with empty lines between paragraphs}."""
    found = Fingerprints(set(), set())
    for article in articles:
        found.titles.add(fingerprint(article.title))
        found.paragraphs.update(fingerprint(paragraph.text) for paragraph in article.paragraphs)
    for title, text in (books or {}).items():
        found.titles.add(fingerprint(title))
        for paragraph in text.split("\n\n"):
            if len(_WORDS.findall(paragraph)) >= MINIMUM_WORDS:
                found.paragraphs.add(fingerprint(paragraph))
    return found


def write_training_manifest(
    path: str | Path, articles: Iterable[Article], books: Mapping[str, str] | None = None
) -> Fingerprints:
    """Record all that a training run reads beside its weights (training_data.json.gz). Returns what was written."""
    found = fingerprints(articles, books)
    write_fingerprints(path, found)
    return found


def write_fingerprints(path: str | Path, found: Fingerprints) -> None:
    content = json.dumps({name: sorted(hashes) for name, hashes in found._asdict().items()}, indent=0)
    Path(path).write_bytes(gzip.compress(content.encode(), 9, mtime=0))


def read_fingerprints(path: str | Path) -> Fingerprints:
    """Raises MambaESIError if the file is missing or of another form."""
    try:
        content = json.loads(gzip.decompress(Path(path).read_bytes()))
        return Fingerprints(set(content["titles"]), set(content["paragraphs"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise MambaESIError(f"{path}: no readable fingerprints ({error}); write them again") from error
