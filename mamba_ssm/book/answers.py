"""From windows that were found to an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from mamba_ssm.book.engine import Engine
from mamba_ssm.book.find import Passage
from mamba_ssm.book.rank import Ranked, spread
from mamba_ssm.book.source import BookInfo
from mamba_ssm.errors import QuestionError
from mamba_ssm.esi.module import Question
from mamba_ssm.esi.reader import MAX_ANSWER
from mamba_ssm.esi.replay import Context, question_likelihood
from mamba_ssm.text.normalise import normalise

RERANKED = 4  # times top_k: windows that a model without ESI weights chooses from
CANDIDATES = 20  # spans whose probabilities are added up where they say the same
# No answer goes on in the next paragraph or sentence, unless there is no other. Of SQuAD's answers for training 50 in
# 87,599 do the latter; a full stop after fewer letters is mostly an abbreviation's.
GOES_ON = re.compile(r"\n\n|(?:\d|[a-z]{4})[.!?]\s")


@dataclass(frozen=True)
class Seconds:
    """Time spent on reading the book and on searching it, for all questions asked together; and on this answer."""

    read: float
    search: float
    answer: float


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence, the passages best first.

    ``told``: False where no passage fits the question as those do that hold an answer, so that the book may not tell.
    ``confidence``, 0 to 1: how often such an answer is right where it was copied from the book, else the geometric mean
    probability of the generated tokens. ``start`` and ``end``: where the book says so; None where it was generated.
    """

    question: str
    text: str
    confidence: float
    evidence: list[Passage]
    start: int | None
    end: int | None
    model: str
    book: BookInfo
    seconds: Seconds
    told: bool = True

    @property
    def source(self) -> int | None:
        """The first passage of the evidence that holds the answer; None where none does."""
        if self.start is None or self.end is None:
            return None
        holds = (i for i, p in enumerate(self.evidence) if p.start <= self.start and self.end <= p.end)
        return next(holds, None)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``mamba-esi ask --json`` prints."""
        return {
            "question": self.question,
            "answer": self.text,
            "confidence": self.confidence,
            "evidence": [_passage(passage) for passage in self.evidence],
            "model": self.model,
            "book": asdict(self.book),
            "seconds": asdict(self.seconds),
        }


def _passage(passage: Passage) -> dict[str, Any]:
    """A passage as JSON has it: its page by number alone, and its book only where several were asked."""
    values = asdict(passage)
    del values["label"]
    if passage.book is None:
        del values["book"]
    return values


@dataclass(frozen=True)
class Reply:
    """What a model said, and from what. ``book`` is the one that says so, as in Passage."""

    text: str
    confidence: float
    evidence: list[Passage]
    start: int | None = None
    end: int | None = None
    told: bool = True
    book: str | None = None

    def answer(self, question: str, passages: int, model: str, book: BookInfo, seconds: Seconds) -> Answer:
        """As the answer to a question, with so many of the passages."""
        evidence = self.evidence[:passages]
        return Answer(
            question, self.text, self.confidence, evidence, self.start, self.end, model, book, seconds, self.told
        )


def check(questions: Sequence[str], top_k: int | None, passages: int, limit: int) -> None:
    """Raise QuestionError for a question without words, ValueError for numbers that are out of range."""
    for number, question in enumerate(questions, 1):
        if not question.strip():
            raise QuestionError(f"question {number} is empty: ask something")
    if min(passages, limit - 1, (top_k or 1) - 1) < 0:
        raise ValueError("passages must be at least 0; top_k and max_new_tokens at least 1")


def windows_for(engine: Engine, top_k: int, passages: int) -> int:
    """How many windows the search has to find."""
    return max(top_k, passages, RERANKED * top_k if engine.model.esi is None else engine.config.n_ranked)


def reply(engine: Engine, question: str, embedded: Question, found: Sequence[Ranked], top_k: int, limit: int) -> Reply:
    """Answer a question from what was found, best first."""
    if engine.model.esi is None:
        return replay(engine, question, found, top_k, limit)
    return point(engine, embedded, found, top_k, limit)


@torch.inference_mode()
def point(engine: Engine, question: Question, found: Sequence[Ranked], top_k: int, limit: int) -> Reply:
    """Copy the most probable span of at most ``limit`` tokens; the reader orders all windows.

    It lies in one of the first top_k, or of those that the reader has first.
    """
    assert engine.model.esi is not None
    if not found:
        return Reply("", 0.0, [], told=False)
    reader, windows = engine.model.esi.reader, [each.window for each in found]
    padded, own = map(np.stack, zip(*(window.padded(engine.config) for window in windows), strict=True))
    ids = engine.tokens(padded)
    scores, gains, fits = torch.tensor([each[1:] for each in found], device=engine.device).T[:, None]
    memory = engine.read(question, ids[None], scores)
    assert memory is not None
    memory = replace(memory, gains=gains)
    ranked = reader.ranking(memory, fits, torch.from_numpy(own).to(engine.device)[None])
    ranking, told = ranked[0].tolist(), reader.tells(ranked[0])
    memory = reader.answering(memory, ranked, top_k)
    spans, _ = reader.best_spans(memory, n=CANDIDATES, max_tokens=min(limit, MAX_ANSWER))
    columns = (spans.window[0], spans.first[0], spans.last[0], spans.probability[0])
    places: dict[str, tuple[int, int, int]] = {}
    confidence: dict[str, float] = {}
    for window, first, last, probability in zip(*(column.tolist() for column in columns), strict=True):
        missing = windows[window].missing(engine.config)
        first, last = first - missing, last - missing
        if not probability or first < 0 or last >= len(windows[window].ids):
            continue
        first, last = windows[window].whole_words(first, last)
        text = windows[window].slice(first, last)[0]
        said = text if GOES_ON.search(text) else normalise(text) or text
        places.setdefault(said, (window, first, last))
        confidence[said] = confidence.get(said, 0.0) + probability
    best = max(confidence, key=lambda said: (bool(said), not GOES_ON.search(said), confidence[said]), default="")
    source, first, last = places.get(best, (-1, 0, 0))
    ordered = spread(windows, ranking)
    evidence = [windows[i].passage(mark, (first, last) if i == source else None) for i, mark in ordered]
    if source < 0:
        return Reply("", 0.0, evidence, told=told)
    sure = float(reader.confidence(torch.tensor(confidence[best])))
    text, start, end = windows[source].slice(first, last)
    return Reply(text, sure, evidence, start, end, told, windows[source].book)


def replay(engine: Engine, question: str, found: Sequence[Ranked], top_k: int, limit: int) -> Reply:
    """Answer without ESI weights: rerank what the embeddings found, and read the best right before the question."""
    encode = engine.tokenizer.encode
    lead, asked = encode("\n\nQuestion:").ids.tolist(), encode(f" {question}").ids.tolist()
    windows = [each.window for each in found]
    likelihood = question_likelihood(engine.model, [window.own_ids.tolist() for window in windows], lead, asked)
    ranked = sorted(zip(likelihood, windows, strict=True), key=lambda pair: -pair[0])
    context: list[int] = []
    book, end = None, 0
    for window in sorted(
        (window for _, window in ranked[:top_k]), key=lambda window: (window.book or "", window.first)
    ):
        if window.book != book:
            book, end = window.book, 0
        context += window.own_ids[max(end - window.first, 0) :].tolist()  # neighbours overlap
        end = window.first + len(window.own_ids)
    prompt = context + lead + asked + encode("\nAnswer:").ids.tolist()
    tokenizer = engine.tokenizer
    text, confidence = Context(engine.model).generate(prompt, limit, tokenizer.end_of_text, tokenizer.decode)
    evidence = [window.passage(score) for score, window in ranked]
    return Reply(text, confidence, evidence, book=evidence[0].book if evidence else None)


def plain_prompt(engine: Engine, question: str) -> list[int]:
    """The question as a model without search is asked it, after the whole book."""
    tokenizer = engine.tokenizer
    # Only a language model that was trained with ESI knows the marks: one that ESI was added to is as it was.
    marked = engine.model.esi is not None and engine.model.adapter is None
    if marked and tokenizer.question is not None and tokenizer.answer is not None:
        return [tokenizer.question, *tokenizer.encode(question).ids.tolist(), tokenizer.answer]
    return tokenizer.encode(f"\n\nQuestion: {question}\nAnswer:").ids.tolist()
