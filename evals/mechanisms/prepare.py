"""Make the texts of the comparison, and rank their windows by BM25; rank.py adds MiniLM.

    python evals/mechanisms/prepare.py [--data data] [--out data/mechanisms.safetensors]

Half of the training's texts are real text with needles of one key and of several laid into it, their values words and
numbers (mamba_ssm/training/recall/needles.py, with its training words and templates); half are crops of SQuAD training
articles as scripts/prepare_data.py leaves them, planted facts and all. The tests are needles with the test's words and
templates, in books that the training has not, at three lengths, and the beginnings of development articles. Whatever a
text's length, it holds eight questions' needles. Needs the extra `evals`, and the fetched and prepared data.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import ROOT
from mechanisms.texts import ANSWER_TOKENS, DEVELOPMENT, QUESTION_TOKENS, STRIDE, TESTS, WINDOW, Texts, save, strings
from recall.search import terms

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.recall import needles
from mamba_ssm.training.recall.example import Example
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.recall.haystack import Haystack
from mamba_ssm.training.recall.words import Split, Words

TRAINING_BOOKS = ("anarchism", "postgresql-doc-15")
TEST_BOOKS = ("python3.11-doc", "octave-doc")
LENGTH = 4032
NEEDLE_TEXTS, ARTICLE_TEXTS = 768, 384
DEVELOPMENT_TEXTS, TEST_TEXTS = 32, 26
EXAMPLES = 8  # in a text with needles
ARTICLE_QUESTIONS, TEST_ARTICLE_QUESTIONS = 24, 16
UUID_CHARACTERS = 36


def example(words: Words) -> Example:
    """One key or several, a word or a number. A UUID is longer than all other answers, and would pad them."""
    task = words.rng.choice((needles.single, needles.multi_key))
    made = (task(words) for _ in iter(int, 1))
    return next(e for e in made if len(e.answers[0]) < UUID_CHARACTERS)


def padded(ids: NDArray, width: int) -> Tensor:
    return F.pad(torch.from_numpy(ids.astype(np.int64)), (0, width - len(ids)))


def needle_texts(filler: Filler, split: Split, length: int, n: int, seed: str) -> Texts:
    """Examples are drawn anew where a question or an answer is too long."""
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    for number in range(n):
        rng = random.Random(f"{seed} {split} {length} {number}")
        words = Words(rng, split)
        asked: list[Example] = []
        while len(asked) < EXAMPLES:
            new = example(words)
            if len(filler.tokenizer.encode(new.question).ids) <= QUESTION_TOKENS:
                asked.append(new)
        haystack = Haystack(filler, [p for e in asked for p in e.pieces], length, rng.getrandbits(32))
        ids = np.concatenate(list(haystack.blocks(length)))
        gold = np.array([haystack.gold(e)[0] for e in asked])
        columns[0].append(torch.from_numpy(ids))
        columns[1].append(
            torch.stack([padded(filler.tokenizer.encode(e.question).ids, QUESTION_TOKENS) for e in asked])
        )
        columns[2].append(torch.stack([padded(ids[first : last + 1], ANSWER_TOKENS) for first, last in gold]))
        columns[3].append(torch.from_numpy(gold))
    return Texts(*map(torch.stack, columns))


def article_texts(examples: Examples, length: int, n: int, questions: int, rng: np.random.Generator | None) -> Texts:
    """n crops of articles at random places, or without ``rng`` the beginnings of the first n that are long enough."""
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    gold_of = examples.gold[:, 0]
    short = gold_of[:, 1] - gold_of[:, 0] < ANSWER_TOKENS
    long_enough = [a for a in range(len(examples.offsets) - 1) if len(examples.text(a)) >= length]
    order = iter(long_enough) if rng is None else (int(rng.choice(long_enough)) for _ in iter(int, 1))
    for article in order:
        if len(columns[0]) == n:
            break
        text = examples.text(article)
        start = 0 if rng is None else int(rng.integers(len(text) - length + 1))
        inside = (gold_of[:, 0] >= start) & (gold_of[:, 1] < start + length)
        rows = np.flatnonzero(inside & short & (examples.article == article))
        if len(rows) == 0:
            continue
        pick = (rng or np.random.default_rng(article)).choice(rows, questions, replace=len(rows) < questions)
        columns[0].append(torch.from_numpy(text[start : start + length]))
        columns[1].append(torch.from_numpy(examples.questions[pick]))
        said = [padded(text[first : last + 1], ANSWER_TOKENS) for first, last in gold_of[pick]]
        columns[2].append(torch.stack(said))
        columns[3].append(torch.from_numpy(gold_of[pick] - start))
    return Texts(*map(torch.stack, columns))


def bm25(ids: Tensor, questions: Tensor, tokenizer: Tokenizer) -> Tensor:
    """All windows of a text (L,) in BM25's order, for questions (P, M): (P, H), by number."""
    index = bm25s.BM25()
    index.index(terms(strings(ids.unfold(0, WINDOW, STRIDE), tokenizer)), show_progress=False)
    asked = terms(strings(questions, tokenizer))
    order, _ = index.retrieve(asked, k=len(ids) // STRIDE - 1, show_progress=False)
    return torch.from_numpy(order.astype(np.int64))


def made(data: Path, cache: Path) -> Iterator[tuple[str, Texts]]:
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    training, test = (
        Filler.of_files([data / "text" / f"{book}.txt" for book in books], tokenizer, cache)
        for books in (TRAINING_BOOKS, TEST_BOOKS)
    )
    squad = {name: Examples.load(data / "prepared" / f"{name}.safetensors") for name in ("train", "dev")}
    yield "needles", needle_texts(training, "train", LENGTH, NEEDLE_TEXTS, "training")
    crops = np.random.default_rng(0)
    yield "articles", article_texts(squad["train"], LENGTH, ARTICLE_TEXTS, ARTICLE_QUESTIONS, crops)
    yield DEVELOPMENT, needle_texts(training, "train", LENGTH, DEVELOPMENT_TEXTS, DEVELOPMENT)
    for name, length in TESTS.items():
        if name.startswith("needles"):
            texts = needle_texts(test, "test", length, TEST_TEXTS, "test")
        else:
            texts = article_texts(squad["dev"], length, TEST_TEXTS, TEST_ARTICLE_QUESTIONS, None)
        orders = [bm25(*text, tokenizer) for text in zip(texts.ids, texts.questions, strict=True)]
        yield name, replace(texts, rankings={"bm25": torch.stack(orders)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "mechanisms.safetensors")
    arguments = parser.parse_args()
    sets = {}
    for name, texts in made(arguments.data, arguments.out.parent / "recall"):
        sets[name] = texts
        n, length = texts.ids.shape
        print(f"{name}: {n} texts of {length} tokens, {texts.questions.shape[1]} questions each", flush=True)
    save(sets, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
