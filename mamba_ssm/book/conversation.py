"""Questions that follow one another: what one leaves out is searched for with the one before it.

evals/follow_ups.py measures it. The question before goes to the search alone: where the reader sees it beside the new
one, it answers the old one again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mamba_ssm.book.answers import Answer
from mamba_ssm.book.book import Book
from mamba_ssm.book.citation import place

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_MARKS = re.compile(r"[\\`*_\[\]<>#|~$]")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_GOES_ON = {"and", "but", "or", "so", "then", "also"}
_POINTS_BACK = {"he", "him", "his", "she", "her", "hers", "it", "its", "they", "them", "their", "theirs"}
_POINTS_BACK |= {"this", "these", "those", "such", "else"}
_GRAMMAR = (
    "a about an any are at be been by can could did do does for from had has have how i if in into is many may me",
    "might more much must no not of on other should than that the there to up was we were what when where which who",
    "whom whose why will with would you",
)
_WITHOUT_MEANING = {word for line in _GRAMMAR for word in line.split()} | _GOES_ON | _POINTS_BACK
ANTECEDENT = 3  # words with a meaning: after so many, what points back may mean something in the question itself
FEW = 2  # words with a meaning: fewer do not say what a question is about


def leaves_out(question: str) -> bool:
    """Whether a question seems to need the one before it: it goes on, points back, or says little by itself."""
    meaning = 0
    for number, match in enumerate(_WORD.finditer(question.casefold())):
        word = match[0]
        if (number == 0 and word in _GOES_ON) or (word in _POINTS_BACK and meaning < ANTECEDENT):
            return True
        meaning += word not in _WITHOUT_MEANING
    return meaning < FEW


@dataclass(frozen=True)
class Turn:
    """A question, what was searched for with it, and an answer from each book, the best first."""

    question: str
    context: str
    answers: list[Answer]


@dataclass
class Conversation:
    """Questions to one or several books, which need one engine. ``turns`` is the history, the oldest first."""

    books: Sequence[Book]
    turns: list[Turn] = field(default_factory=list)

    def context(self, question: str) -> str:
        """What to search for with a question: the last one that stood alone, where this one does not."""
        if not self.turns or not leaves_out(question):
            return ""
        last = self.turns[-1]
        return last.context or last.question

    def ask_each(self, question: str, **options: Any) -> Iterator[Answer]:
        """An answer of each book as soon as it is there; the turn is in the history after the last one.

        ``options`` are those of `Book.ask`. Raises QuestionError.
        """
        context, answers = self.context(question), []
        for book in self.books:
            answer = book.ask(question, context=context, **options)
            answers.append(answer)
            yield answer
        self.turns.append(Turn(question, context, sorted(answers, key=_rank)))

    def markdown(self) -> str:
        """The history as Markdown: each answer with the number of the passage that holds it, and the passages."""
        return "\n".join(line for turn in self.turns for line in _markdown(turn))


def _rank(answer: Answer) -> float:
    """By the best passage: scores compare between the passages of one question, of whatever book."""
    return -max((passage.score for passage in answer.evidence), default=float("-inf"))


def _markdown(turn: Turn) -> Iterator[str]:
    yield f"## {_plain(turn.question)}\n"
    if turn.context:
        yield f"Searched with: {_plain(turn.context)}\n"
    for answer in turn.answers:
        cited = f" [{answer.source + 1}]" if answer.source is not None else ""
        doubt = "" if answer.told else "; the book does not seem to tell"
        yield f"**{_plain(answer.text) or 'no answer'}**{cited} (confidence {answer.confidence:.0%}{doubt})\n"
        for number, passage in enumerate(answer.evidence, 1):
            yield f"{number}. {_plain(' · '.join([answer.book.path, *place(passage)]))}\n"
            yield f"    > {_plain(passage.text)}\n"


def _plain(text: str) -> str:
    """One line that Markdown takes as it is."""
    return _MARKS.sub(r"\\\g<0>", " ".join(_CONTROL.sub(" ", text).split()))
