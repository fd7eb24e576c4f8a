"""SQuAD v1.1 as articles, and the fixed set of articles that is kept out of training for development.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv 1606.05250); CC BY-SA 4.0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mamba_ssm.errors import MambaESIError

DEVELOPMENT_ARTICLES = 40
PARAGRAPH_BREAK = "\n\n"


@dataclass(frozen=True)
class Question:
    """A question; each answer is (start, text) with start in characters of its paragraph."""

    id: str
    text: str
    answers: list[tuple[int, str]]


@dataclass(frozen=True)
class Paragraph:
    text: str
    questions: list[Question]


@dataclass(frozen=True)
class Article:
    title: str
    paragraphs: list[Paragraph]


def load_squad(path: str | Path) -> list[Article]:
    """Read a SQuAD v1.1 file, in its own order. Raises MambaESIError if it is missing or of another form."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))["data"]
        return [_article(entry) for entry in data]
    except OSError as error:
        raise MambaESIError(f"{path}: {error.strerror}; fetch it with: python scripts/fetch_data.py") from error
    except (ValueError, KeyError, TypeError) as error:
        raise MambaESIError(f"{path} is not a SQuAD v1.1 file; fetch it with: python scripts/fetch_data.py") from error


def _article(entry: dict) -> Article:
    return Article(entry["title"], [_paragraph(p) for p in entry["paragraphs"]])


def _paragraph(entry: dict) -> Paragraph:
    questions = [
        Question(q["id"], q["question"], [(a["answer_start"], a["text"]) for a in q["answers"]]) for q in entry["qas"]
    ]
    return Paragraph(entry["context"], questions)


def development_titles(articles: Iterable[Article]) -> set[str]:
    """The 40 titles of SQuAD train with the smallest SHA-256: a rule that no order, seed or version can change."""
    titles = {article.title for article in articles}
    return set(sorted(titles, key=lambda title: hashlib.sha256(title.encode()).digest())[:DEVELOPMENT_ARTICLES])


def training_articles(articles: Sequence[Article]) -> list[Article]:
    """SQuAD train without its development articles."""
    held_out = development_titles(articles)
    return [article for article in articles if article.title not in held_out]


def article_text(article: Article) -> tuple[str, list[int]]:
    """The article as one text, and the character at which each paragraph starts in it."""
    starts, position = [], 0
    for paragraph in article.paragraphs:
        starts.append(position)
        position += len(paragraph.text) + len(PARAGRAPH_BREAK)
    return PARAGRAPH_BREAK.join(paragraph.text for paragraph in article.paragraphs), starts
