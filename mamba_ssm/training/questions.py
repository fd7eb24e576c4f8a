"""A user's own questions to train on: JSON lines with a book, a question, its answer, and where the book says it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mamba_ssm.errors import QuestionError
from mamba_ssm.esi.reader import MAX_ANSWER
from mamba_ssm.text import read_pieces
from mamba_ssm.training.examples import Encoder, Examples, build_examples
from mamba_ssm.training.squad import Article, Paragraph, Question

NOT_SPELLED = "the book does not spell the answer, or not at start"
TOO_LONG = f"the answer is longer than {MAX_ANSWER} tokens, the most that is copied"
LeftOut = dict[str, list[int]]
"""Lines of the file by the reason why they cannot be trained on."""


@dataclass(frozen=True)
class _Line:
    number: int
    book: str
    question: str
    answer: str
    start: int | None


def load_questions(path: str | Path, tokenizer: Encoder) -> tuple[Examples, LeftOut]:
    """Read a file of lines ``{"book", "question", "answer", "start"}``; books are paths from the file's folder.

    ``start``, which may be missing, counts characters of the book's text as `mamba-esi text` prints it; by default the
    answer is where the book first says it, as whole words, whatever white space is between them. Raises QuestionError
    for a file that is none, or of which no question can be trained on; BookError for a book that cannot be read.
    """
    path = Path(path)
    lines = _read(path)
    left_out: LeftOut = {}
    articles, numbers = [], []
    for book in dict.fromkeys(line.book for line in lines):
        text = "".join(piece.text for piece in read_pieces(path.parent / book))
        questions = []
        for line in (line for line in lines if line.book == book):
            span = _find(text, line.answer, line.start)
            if span is None:
                left_out.setdefault(NOT_SPELLED, []).append(line.number)
            else:
                questions.append(Question(str(line.number), line.question, [(span[0], text[slice(*span)])]))
                numbers.append(line.number)
        articles.append(Article(book, [Paragraph(text, questions)]))
    if numbers:
        examples = build_examples(articles, tokenizer)
        short = examples.gold[:, 0, 1] - examples.gold[:, 0, 0] < MAX_ANSWER
        if not short.all():
            left_out[TOO_LONG] = np.array(numbers)[~short].tolist()
        if short.any():
            return examples.of_questions(short), left_out
    raise QuestionError(f"{path}: no question in it can be trained on; {describe(left_out)}")


def describe(left_out: LeftOut) -> str:
    """One line: how many questions, why, and the first few lines of the file."""
    parts = []
    for reason, numbers in left_out.items():
        first = ", ".join(map(str, sorted(numbers)[:5])) + (", ..." if len(numbers) > 5 else "")
        parts.append(f"{len(numbers)} left out ({'line' if len(numbers) == 1 else 'lines'} {first}): {reason}")
    return "; ".join(parts)


def _read(path: Path) -> list[_Line]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"{path}: cannot be read as UTF-8 text ({error}); check the path and the file") from error
    found = [_line(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise QuestionError(f"{path}: no questions in it; write one a line")
    return found


def _line(text: str, number: int, path: Path) -> _Line:
    value: Any
    try:
        value = json.loads(text)
        book, question, answer = (value[name].strip() for name in ("book", "question", "answer"))
        start = value.get("start")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        book = question = answer = start = None
    if not (book and question and answer) or not (start is None or (type(start) is int and start >= 0)):
        raise QuestionError(
            f'{path}, line {number}: not a JSON object with texts "book", "question" and "answer", and perhaps a '
            'number "start"; mend the line'
        )
    return _Line(number, book, question, answer, start)


def _find(text: str, answer: str, start: int | None) -> tuple[int, int] | None:
    spelled = r"\s+".join(map(re.escape, answer.split()))
    if start is not None:
        match = re.compile(spelled).match(text, start)
    else:
        match = re.search(rf"(?<!\w){spelled}(?!\w)", text)
    return None if match is None else match.span()


def cut(examples: Examples, size: int) -> Examples:
    """The same with articles of at most ``size`` tokens. A long one is cut, between answers."""
    first, last = (examples.gold[:, 0] + examples.offsets[examples.article][:, None]).T
    # Cutting before token t falls into an answer that began before t and ends at it or after.
    change = np.zeros(len(examples.ids) + 1, dtype=np.int64)
    np.add.at(change, first + 1, 1)
    np.add.at(change, last + 1, -1)
    free = np.cumsum(change) == 0
    offsets = [0]
    for end in examples.offsets[1:]:
        while end - offsets[-1] > size:
            places = np.flatnonzero(free[offsets[-1] + 1 : offsets[-1] + size + 1])
            offsets.append(offsets[-1] + (int(places[-1]) + 1 if len(places) else size))
        offsets.append(int(end))
    starts = np.array(offsets)
    article = np.searchsorted(starts, first, side="right") - 1
    moved = (examples.offsets[examples.article] - starts[article])[:, None]
    gold = np.where(examples.gold < 0, -1, examples.gold + moved[:, :, None])
    length = np.diff(starts)[article]
    paragraph = np.clip(examples.paragraph + moved, 0, length[:, None])
    return Examples(examples.ids, starts, examples.questions, article, gold, paragraph)
