"""Question-answering examples as flat arrays of token ids: books of one or more articles, questions, gold spans.

The arrays are small enough to be kept whole: 87,599 questions and 402 articles take about 20 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mamba_ssm.training.squad import Article, article_text

MAX_QUESTION = 32
HELD_OUT = 50  # one question in so many
Ints = NDArray[np.int64]


class Encoder(Protocol):
    """What is needed of a tokenizer: text -> (ids, first characters, ends)."""

    def encode(self, text: str) -> tuple[NDArray, NDArray, NDArray]: ...


@dataclass(frozen=True)
class Examples:
    """Articles and the questions about them. All positions are in tokens of the question's article.

    ``ids`` (T,) every article's tokens, one after another; article a is ids[offsets[a]:offsets[a + 1]].
    ``questions`` (Q, MAX_QUESTION), 0 where shorter; ``article`` (Q,); ``gold`` (Q, A, 2) first and last token of up to
    A answers, -1 where there are fewer; ``paragraph`` (Q, 2) first token of the answer's paragraph and the token after
    its last.
    """

    ids: Ints
    offsets: Ints
    questions: Ints
    article: Ints
    gold: Ints
    paragraph: Ints

    def text(self, article: int) -> Ints:
        """Token ids of one article."""
        return self.ids[self.offsets[article] : self.offsets[article + 1]]

    def first(self, n: int) -> Examples:
        """Those of the first n articles."""
        return self.of_articles(np.arange(n))

    def of_articles(self, articles: Ints) -> Examples:
        """Those of some articles, and these alone."""
        number = np.full(len(self.offsets) - 1, -1)
        number[articles] = np.arange(len(articles))
        texts = [self.text(article) for article in articles]
        kept = self.of_questions(number[self.article] >= 0)
        offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
        return replace(kept, ids=np.concatenate(texts), offsets=offsets, article=number[kept.article])

    def of_questions(self, rows: NDArray) -> Examples:
        """Those questions (by number, or a mask), with all articles."""
        return replace(
            self, **{name: getattr(self, name)[rows] for name in ("questions", "article", "gold", "paragraph")}
        )

    def save(self, path: str | Path) -> None:
        save_file({f.name: getattr(self, f.name).astype(np.int32) for f in fields(self)}, path)

    @classmethod
    def load(cls, path: str | Path) -> Examples:
        return cls(**{name: array.astype(np.int64) for name, array in load_file(path).items()})


def build_examples(articles: Sequence[Article], tokenizer: Encoder) -> Examples:
    """Tokenise articles and questions; a gold span is the tokens that overlap the answer's characters."""
    texts, questions, article_of, gold, paragraph_of = [], [], [], [], []
    n_answers = max(len(q.answers) for a in articles for p in a.paragraphs for q in p.questions)
    for number, article in enumerate(articles):
        text, paragraph_starts = article_text(article)
        ids, first, end = tokenizer.encode(text)
        texts.append(ids)
        for start, paragraph in zip(paragraph_starts, article.paragraphs, strict=True):
            bounds = np.searchsorted(first, [start, start + len(paragraph.text)])
            for question in paragraph.questions:
                words = tokenizer.encode(question.text)[0][:MAX_QUESTION]
                questions.append(np.pad(words, (0, MAX_QUESTION - len(words))))
                spans = np.full((n_answers, 2), -1)
                for i, (at, answer) in enumerate(question.answers):
                    spans[i] = (
                        np.searchsorted(end, start + at, side="right"),
                        np.searchsorted(first, start + at + len(answer), side="left") - 1,
                    )
                article_of.append(number)
                gold.append(spans)
                paragraph_of.append(bounds)
    return Examples(
        ids=np.concatenate(texts).astype(np.int64),
        offsets=np.cumsum([0, *map(len, texts)]).astype(np.int64),
        questions=np.stack(questions).astype(np.int64),
        article=np.array(article_of, dtype=np.int64),
        gold=np.stack(gold).astype(np.int64),
        paragraph=np.stack(paragraph_of).astype(np.int64),
    )


def hold_out(examples: Examples, seed: int) -> tuple[Examples, Examples | None]:
    """To learn from, and a fiftieth of the questions to measure on; None where there are fewer than fifty.

    Whole articles are held out, drawn at random until they have so many questions. Where these would be more than a
    tenth of all, as where there is one, or a few, questions are held out, and their articles are learned from.
    """
    n = len(examples.questions)
    if n < HELD_OUT:
        return examples, None
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(examples.offsets) - 1)
    asked = np.bincount(examples.article, minlength=len(order))[order].cumsum()
    last = int(np.searchsorted(asked, n // HELD_OUT)) + 1
    if asked[last - 1] <= n // 10:
        return examples.of_articles(np.sort(order[last:])), examples.of_articles(np.sort(order[:last]))
    rows = rng.permutation(n)
    learned, measured = np.sort(rows[n // HELD_OUT :]), np.sort(rows[: n // HELD_OUT])
    return examples.of_questions(learned), examples.of_questions(measured)
