"""Train ESI: the search, then, on the windows that it finds, the reader, then the injection and the language model.

One recipe for the default model, which learns all of it from nothing, and for a checkpoint that is there already.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.search import rank_weights
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.evaluate import mine
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.loop import Parts, train
from mamba_ssm.training.reading import (
    MARKS,
    Frame,
    ReadBatch,
    Taught,
    answer_loss,
    answer_sequences,
    order_loss,
    plain_sequences,
    read_batches,
    span_loss,
)
from mamba_ssm.training.retrieval import SearchBatch, search_batches, search_loss

SHELF = 40  # articles in the larger of the two kinds of book that the reader sees
MINED, READ = 20, 8  # windows found for each question, and windows read of them
RECALL_READ = 12  # of a question that may have several answers
RECALL_TURN = 4  # one step in so many is the recall tasks'
SEARCH_TURN = 4  # one step of the reader in so many goes on to train the search
QUESTIONS = 256  # in a batch of the search
WORD_DROPOUT = 0.1
PLAIN_TURN = 3  # one step in so many, the language model also learns to do without ESI
SEARCH_FIRST, LANGUAGE_LAST = 0.2, 0.2  # shares of the steps that train the search, and the language model
SEARCH_RATE = 0.5  # share of the learning rate while the reader is trained
# One layer of context, as in the default model: more found no more, and cost reading speed.
ADDED = ESIConfig(n_enc=1)
BACKBONE_RATE = 0.1  # share of the learning rate, where a checkpoint's own weights are tuned too


Mined = Sequence[tuple[Tensor, Tensor]]
"""Starts and scores (questions, MINED) of what was found, for each kind of book."""


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and on how much at a time.

    ``search_rates`` and ``read_rates``: shares of the learning rate by prefix of a parameter's name, 0 to freeze, while
    the search is trained and while the reader is. ``language_rate``: of the language model's layers after the encoder,
    when these are trained. ``crops`` article crops of ``crop`` tokens, a multiple of a block, make a batch of the
    search; ``batch`` questions one of the reader. ``frame`` stands around a question where the language model is asked
    it; it also learns to answer without ESI, ``plain_rows`` questions at a time. The reader is trained on
    what the search finds at ``minings`` times, evenly apart: the search goes on learning, and finds other windows.
    """

    search_rates: Mapping[str, float]
    read_rates: Mapping[str, float]
    search_steps: int
    read_steps: int
    language_steps: int
    language_rate: float = 1.0
    lr: float = 1e-3
    crops: int = 12
    crop: int = 4032
    batch: int = 96
    seed: int = 0
    frame: Frame = MARKS
    plain_rows: int = 16
    minings: int = 1


class Turn(NamedTuple):
    """What a step of the reader learns from, and where it is the search's turn, that too."""

    read: ReadBatch
    search: SearchBatch | None


class Said(NamedTuple):
    """What a step of the language model learns to say: ids and targets, with the windows injected, and without ESI."""

    read: ReadBatch
    answer: tuple[Tensor, Tensor]
    plain: tuple[Tensor, Tensor] | None


def train_esi(
    model: MambaLMHeadModel,
    examples: Examples,
    recipe: Recipe,
    log: Callable[[str], None] = print,
    report: Callable[[Tensor], None] | None = None,
    done: Callable[[str], None] = lambda stage: None,
    recall: Examples | None = None,
    teach: Callable[[Mined], Sequence[Taught]] | None = None,
) -> None:
    """Train a model that has ESI parameters, in place.

    ``done`` is told each stage that is over: "search", "reader", "language". ``recall``: books of the recall tasks, to
    train on beside the examples. ``teach``: from windows that were found to what a teacher makes of them.
    """
    device = next(model.parameters()).device
    rng = np.random.default_rng(recipe.seed)
    sources = [examples] if recall is None else [examples, recall]
    searching = [
        search_batches(source, recipe.crops, recipe.crop, QUESTIONS, rng, WORD_DROPOUT, device) for source in sources
    ]

    def run(loss: Callable[..., Parts], batches: Iterator, steps: int, rates: Mapping[str, float]) -> None:
        # A short run is warmed up for a part of it, too.
        warmup = min(200, 1 + steps // 7)
        slow = dict(rates)
        train(model, loss, steps, recipe.lr, batches, capture=True, warmup=warmup, slow=slow, log=log, report=report)

    def search_turns() -> Iterator[SearchBatch]:
        for step in itertools.count():
            yield next(searching[_whose_turn(step, sources)])

    def searching_step(batch: SearchBatch) -> Parts:
        return {"search": search_loss(model, batch)}

    run(searching_step, search_turns(), recipe.search_steps, recipe.search_rates)
    done("search")

    def found_in(source: Examples, k: int, teach: Callable[[Mined], Sequence[Taught]] | None) -> Iterator[ReadBatch]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mined = [mine(model, source, articles, MINED) for articles in (1, SHELF)]
        rows = min(max(1, recipe.batch * READ // k), len(source.questions))
        taught = None if teach is None else teach(mined)
        return read_batches(source, mined, rows, k, model.searcher().config, rng, device, taught)

    def find() -> list[Iterator[ReadBatch]]:
        found = [found_in(examples, READ, teach)]
        return found if recall is None else [*found, found_in(recall, RECALL_READ, None)]

    reading = find()
    again = {round(recipe.read_steps * n / recipe.minings) for n in range(1, recipe.minings)}

    def read_turns() -> Iterator[Turn]:
        for step in itertools.count():
            if step in again:
                reading[:] = find()
            source = _whose_turn(step, sources)
            # The search goes on learning, lest the encoder forget it; of both sources, in turn.
            searches = step % SEARCH_TURN == (step // SEARCH_TURN) % SEARCH_TURN
            yield Turn(next(reading[source]), next(searching[source]) if searches else None)

    def reading_step(turn: Turn) -> Parts:
        searcher, batch = model.searcher(), turn.read
        question = searcher.ask(batch.questions)
        memory = searcher.read(question, batch.windows, batch.scores)
        assert memory is not None
        parts = {"span": span_loss(model, memory, batch)}
        if turn.search is not None:
            parts["search"] = search_loss(model, turn.search)
            if batch.taught is not None:
                parts["order"] = order_loss(model, question, batch)
        return parts

    run(reading_step, read_turns(), recipe.read_steps, recipe.read_rates)
    done("reader")

    text = torch.from_numpy(examples.ids)

    def language_turns() -> Iterator[Said]:
        for step in itertools.count():
            batch = next(reading[0])
            answer = answer_sequences(batch.questions, batch.answers, frame=recipe.frame)
            plain = None
            if step % PLAIN_TURN == 0 and recipe.plain_rows:
                plain = plain_sequences(batch, text, recipe.plain_rows, recipe.frame)
            yield Said(batch, answer, plain)

    def language_step(said: Said) -> Parts:
        batch, searcher = said.read, model.searcher()
        with torch.no_grad():
            memory = searcher.read(searcher.ask(batch.questions), batch.windows, batch.scores)
        parts = {"answer": answer_loss(model, memory, *said.answer)}
        if said.plain is not None:
            parts["plain"] = answer_loss(model, None, *said.plain)
        return parts

    # What search and reader see stays as it is.
    encoder = [f"backbone.layers.{layer}." for layer in range(model.searcher().config.n_enc)]
    fixed = dict.fromkeys(["backbone.embedding", *encoder, "esi.search", "esi.reader"], 0.0)
    rates = fixed | dict.fromkeys(["backbone", "lm_head"], recipe.language_rate)
    run(language_step, language_turns(), recipe.language_steps, rates)
    done("language")


def _whose_turn(step: int, sources: Sequence[Examples]) -> int:
    """0 for the examples, 1 for the recall tasks, where there are any."""
    return int(len(sources) > 1 and step % RECALL_TURN == RECALL_TURN - 1)


def tune(
    model: MambaLMHeadModel,
    examples: Examples,
    tokenizer: Tokenizer,
    steps: int,
    lr: float = 1e-3,
    batch: int = 32,
    seed: int = 0,
    with_backbone: bool = False,
    log: Callable[[str], None] = print,
    report: Callable[[Tensor], None] | None = None,
) -> None:
    """Train ESI on a checkpoint's own tokens, in place; the checkpoint itself stays as it is, or learns slowly.

    Without ESI weights it gets new ones, else training goes on from those that it has. ``batch`` questions make a batch
    of the reader, and as many crops one of the search as the recipe has for so many.
    """
    torch.manual_seed(seed)
    if model.esi is None:
        add_esi(model, ADDED)
    backbone = BACKBONE_RATE if with_backbone else 0.0
    rates = {"backbone": backbone, "lm_head": backbone}
    # A frozen model knows no marks: it is asked in words.
    frame = (with_backbone and question_in_marks(tokenizer)) or question_in_words(tokenizer)
    search_steps, language_steps = (max(1, round(share * steps)) for share in (SEARCH_FIRST, LANGUAGE_LAST))
    recipe = Recipe(
        search_rates=rates,
        read_rates=rates | {"esi.search": SEARCH_RATE},
        search_steps=search_steps,
        read_steps=steps - search_steps - language_steps,
        language_steps=language_steps,
        language_rate=backbone,
        lr=lr,
        crops=max(2, batch * Recipe.crops // Recipe.batch),
        batch=batch,
        seed=seed,
        frame=frame,
        plain_rows=batch * Recipe.plain_rows // Recipe.batch if with_backbone else 0,
    )
    train_esi(model, examples, recipe, log, report)


def question_in_marks(tokenizer: Tokenizer) -> Frame | None:
    """The special tokens around a question, where the vocabulary has them."""
    if tokenizer.question is None or tokenizer.answer is None:
        return None
    return [tokenizer.question], [tokenizer.answer]


def question_in_words(tokenizer: Tokenizer) -> Frame:
    """What stands before and after a question for a model that was trained on text alone."""
    return tokenizer.encode("\n\nQuestion: ").ids.tolist(), tokenizer.encode("\nAnswer:").ids.tolist()


def add_esi(model: MambaLMHeadModel, config: ESIConfig) -> None:
    """Give a model without ESI untrained parameters of it, whose search begins as the one without training does."""
    model.config.esi = asdict(config)
    weight = model.backbone.embedding.weight
    model.esi = model.new_esi(weight.device, weight.dtype)
    assert model.esi is not None
    with torch.no_grad():
        ids = torch.arange(len(weight), device=weight.device)
        model.esi.search.prior.weight.copy_(rank_weights(ids).log()[:, None])
