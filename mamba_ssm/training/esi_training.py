"""Train ESI: first the search, then, on the windows that it finds, the reader, the injection and the language model.

One recipe for the default model, which learns all of it from nothing, and for a checkpoint that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.search import rank_weights
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.evaluate import mine
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.loop import train
from mamba_ssm.training.reading import (
    MARKS,
    Frame,
    answer_loss,
    answer_sequences,
    plain_sequences,
    read_batches,
    span_loss,
)
from mamba_ssm.training.retrieval import search_batches, search_loss

SHELF = 40  # articles in the larger of the two kinds of book that the reader sees
MINED, READ = 24, 8  # windows found for each question, and windows read of them
QUESTIONS = 256  # in a batch of the search
WORD_DROPOUT = 0.1
LANGUAGE_WEIGHT = 0.3
SEARCH_FIRST = 0.175  # share of the steps that train the search alone, as in the default model
SEARCH_RATE = 0.5  # share of the learning rate while the reader is trained
# One layer of context, as in the default model: more found no more, and cost reading speed.
ADDED = ESIConfig(n_enc=1)
BACKBONE_RATE = 0.1  # share of the learning rate, where a checkpoint's own weights are tuned too


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and on how much at a time.

    ``search_rates`` and ``read_rates``: shares of the learning rate by prefix of a parameter's name, 0 to freeze, while
    the search is trained and while the rest is. ``crops`` article crops of ``crop`` tokens, a multiple of a block, make
    a batch of the search; ``batch`` questions one of the reader. ``frame`` stands around a question where the language
    model is asked it; it also learns to answer without ESI, ``plain_rows`` questions at a time.
    """

    search_rates: Mapping[str, float]
    read_rates: Mapping[str, float]
    search_steps: int = 700
    read_steps: int = 3300
    lr: float = 1e-3
    crops: int = 12
    crop: int = 4032
    batch: int = 96
    seed: int = 0
    frame: Frame = MARKS
    plain_rows: int = 16


def train_esi(
    model: MambaLMHeadModel,
    examples: Examples,
    recipe: Recipe,
    log: Callable[[str], None] = print,
    report: Callable[[Tensor], None] | None = None,
    searched: Callable[[], None] = lambda: None,
) -> None:
    """Train a model that has ESI parameters, in place. ``searched`` is called when the search is trained."""
    device = next(model.parameters()).device
    rng = np.random.default_rng(recipe.seed)
    searching = search_batches(examples, recipe.crops, recipe.crop, QUESTIONS, rng, WORD_DROPOUT, device)

    def searching_step(_: int) -> dict[str, Tensor]:
        return {"search": search_loss(model, next(searching))}

    def run(step: Callable[[int], dict[str, Tensor]], steps: int, rates: Mapping[str, float]) -> None:
        # A short run is warmed up for a part of it, too.
        train(model, step, steps, recipe.lr, warmup=min(100, 1 + steps // 7), slow=dict(rates), log=log, report=report)

    run(searching_step, recipe.search_steps, recipe.search_rates)
    searched()

    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        mined = [mine(model, examples, articles, MINED) for articles in (1, SHELF)]
    rows = min(recipe.batch, len(examples.questions))
    reading = read_batches(examples, mined, rows, READ, model.searcher().config.window, rng, device)
    text = torch.from_numpy(examples.ids)

    def reading_step(step: int) -> dict[str, Tensor]:
        batch, searcher = next(reading), model.searcher()
        memory = searcher.read(searcher.ask(batch.questions), batch.windows, batch.scores)
        assert memory is not None
        said = answer_sequences(batch.questions, batch.answers, frame=recipe.frame)
        parts = {"span": span_loss(model, memory, batch), "answer": LANGUAGE_WEIGHT * answer_loss(model, memory, *said)}
        # The search goes on learning, lest the encoder forget it, and the model learns to do without it.
        if step % 3 == 0:
            parts["search"] = search_loss(model, next(searching))
        elif step % 3 == 1 and recipe.plain_rows:
            plain = plain_sequences(batch, text, recipe.plain_rows, recipe.frame)
            parts["plain"] = LANGUAGE_WEIGHT * answer_loss(model, None, *plain)
        return parts

    run(reading_step, recipe.read_steps, recipe.read_rates)


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
    search_steps = max(1, round(SEARCH_FIRST * steps))
    recipe = Recipe(
        search_rates=rates,
        read_rates=rates | {"esi.search": SEARCH_RATE},
        search_steps=search_steps,
        read_steps=steps - search_steps,
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
