"""From a haystack and questions to answers: all that a model does, and nothing of how it is judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from recall.search import Found, Search, ask
from torch import Tensor

from mamba_ssm.book import Engine
from mamba_ssm.book.answers import GOES_ON
from mamba_ssm.text.words import whole_words
from mamba_ssm.training.recall.needles import with_found

KEPT = 32  # windows that are found, to measure recall
CANDIDATES = 64
MAX_TOKENS = 40  # a UUID has up to 36
THRESHOLD = 0.05  # of the most probable answer's probability, for the others of several
BATCH = 16
END_OF_SENTENCE = re.compile(r"[.!?;]\s|\n")


@dataclass(frozen=True)
class Prediction:
    """The answers to a question, most probable first, and where the windows found for it begin, best first."""

    answers: list[str]
    windows: list[int]


@torch.inference_mode()
def predict(
    engine: Engine, questions: Sequence[str], several: bool, search: Search, rounds: int = 1
) -> list[Prediction]:
    """Answer questions about one haystack, each with one span, or with ``several`` distinct ones.

    In each of the ``rounds`` after the first, a question is asked again with what was said to it, until nothing new is.
    """
    predictions = _predict(engine, questions, several, search)
    open_ones = list(range(len(questions)))
    for _ in range(1, rounds):
        again = [with_found(questions[i], predictions[i].answers) for i in open_ones]
        if not again:
            break
        told = dict(zip(open_ones, _predict(engine, again, several, search), strict=True))
        open_ones = [i for i, new in told.items() if not set(new.answers) <= set(predictions[i].answers)]
        for i, new in told.items():
            predictions[i] = new
    return predictions


def _predict(engine: Engine, questions: Sequence[str], several: bool, search: Search) -> list[Prediction]:
    found = search(questions, KEPT)
    predictions: list[Prediction] = []
    for i in range(0, len(questions), BATCH):
        rows = slice(i, i + BATCH)
        part = Found(*(each[rows] for each in vars(found).values()))
        answers = _answers(engine, questions[rows], part, several)
        for said, windows in zip(answers, part.starts.tolist(), strict=True):
            predictions.append(Prediction(said if several else said[:1], [start for start in windows if start >= 0]))
    return predictions


def _answers(engine: Engine, questions: Sequence[str], found: Found, several: bool) -> list[list[str]]:
    """Of each question the likeliest distinct spans, down to the threshold. None overlap.

    One answer is taken from the windows that `ask` takes it from, ``several`` from all. Of several none goes on in
    another sentence: where answers lie side by side, one from the first to the last of them is likely, too.
    """
    assert engine.model.esi is not None
    reader, config = engine.model.esi.reader, engine.config
    memory = engine.read(ask(engine, questions), found.ids, found.scores)
    assert memory is not None
    memory = replace(memory, gains=found.gains)
    if not several:
        own = torch.zeros_like(found.ids, dtype=torch.bool)
        own[..., config.margin : config.margin + config.window] = True
        memory = reader.answering(memory, reader.ranking(memory, found.fits, own), config.top_k)
    spans, _ = reader.best_spans(memory, n=CANDIDATES, max_tokens=MAX_TOKENS)
    columns = torch.stack([spans.window, spans.first, spans.last], -1).tolist()
    answers = []
    for row, (places, probabilities) in enumerate(zip(columns, spans.probability.tolist(), strict=True)):
        pieces = cache(partial(_pieces, engine, found.ids[row]))
        probability_of: dict[str, float] = {}
        tokens_of: dict[str, set[int]] = {}
        for (window, first, last), probability in zip(places, probabilities, strict=True):
            first, last = whole_words(pieces(window).__getitem__, found.ids.shape[2], first, last)
            text = engine.tokenizer.decode(found.ids[row, window, first : last + 1].tolist()).strip()
            if not text or (several and END_OF_SENTENCE.search(text)):
                continue
            start = int(found.read_from[row, window])
            probability_of[text] = probability_of.get(text, 0.0) + probability
            tokens_of.setdefault(text, set()).update(range(start + first, start + last + 1))
        taken: list[str] = []
        covered: set[int] = set()
        order = sorted(probability_of, key=lambda text: (GOES_ON.search(text) is not None, -probability_of[text]))
        for text in order:
            if probability_of[text] >= THRESHOLD * probability_of[order[0]] and not tokens_of[text] & covered:
                taken.append(text)
                covered |= tokens_of[text]
        answers.append(taken)
    return answers


def _pieces(engine: Engine, windows: Tensor, number: int) -> list[str]:
    """What each token of one of the windows says."""
    return [engine.tokenizer.decode([token]) for token in windows[number].tolist()]
