"""Train ESI: the search, then, on the windows that it finds, the reader, then the injection and the language model.

One plan for the default model, which learns all of it from nothing, and for a checkpoint that is there already. Here it
is followed on one device, where a GPU replays a step's passes; training/answering.py follows it on the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.search import rank_weights
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.found import found_in
from mamba_ssm.training.loop import train
from mamba_ssm.training.plan import Lessons, Plan, Source
from mamba_ssm.training.reading import Frame, Mined, Taught
from mamba_ssm.training.stages import LanguageStage, ReaderStage, SearchStage, Stage

SEARCH_FIRST, LANGUAGE_LAST = 0.2, 0.2  # shares of the steps that train the search, and the language model
SEARCH_RATE = 0.5  # share of the learning rate while the reader is trained
WARMUP = 200  # steps
RECALL_READ = 12  # windows read of a recall task's question, which may have several answers
# One layer of context, as in the default model: more found no more, and cost reading speed.
ADDED = ESIConfig(n_enc=1)


def train_esi(
    model: MambaLMHeadModel,
    examples: Examples,
    plan: Plan,
    log: Callable[[str], None] = print,
    report: Callable[[Tensor], None] | None = None,
    done: Callable[[str], None] = lambda stage: None,
    recall: Examples | None = None,
    headings: Examples | None = None,
    teach: Callable[[Mined], Sequence[Taught]] | None = None,
    minings: int = 1,
) -> None:
    """Train a model that has ESI parameters, in place.

    ``done`` is told each stage that is over: "search", "reader", "language". ``recall``: books of the recall tasks, to
    train on beside the examples. ``headings``: asked of the search alone. ``teach``: from windows that were found to
    what a teacher makes of them. The reader is trained on what the search finds at ``minings`` times, evenly apart: the
    search goes on learning, and finds other windows.
    """
    device = next(model.parameters()).device
    sources = [Source(examples)]
    if recall is not None:
        sources.append(Source(recall, RECALL_READ))
    lessons = Lessons(sources, headings=headings, device=device)

    def run(stage: Stage, steps: int, batches: Iterator) -> None:
        warmup = warmed(WARMUP, steps)
        slow = dict(stage.rates)
        train(model, stage.loss, steps, plan.lr, batches, True, plan.decay, warmup, slow, log, report)
        done(stage.name)

    def find() -> ReaderStage:
        nonlocal lessons
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            sources = [replace(source, mined=found_in(model, source.examples)) for source in lessons.sources]
        if teach is not None:
            sources[0] = replace(sources[0], taught=teach(sources[0].mined))
        lessons = replace(lessons, sources=sources)
        return ReaderStage(model, plan, lessons)

    search = SearchStage(model, plan, lessons)
    run(search, plan.search_steps, map(search.at, itertools.count()))
    reader = find()
    again = {round(plan.read_steps * n / minings) for n in range(1, minings)}

    def reading() -> Iterator:
        nonlocal reader
        for step in itertools.count():
            if step in again:
                reader = find()
            yield reader.at(step)

    run(reader, plan.read_steps, reading())
    language = LanguageStage(model, plan, lessons)
    run(language, plan.language_steps, map(language.at, itertools.count()))


def warmed(most: int, steps: int) -> int:
    """Steps of warm-up: a short run is warmed up for a part of it, too."""
    return min(most, 1 + steps // 7)


def tune(
    model: MambaLMHeadModel,
    examples: Examples,
    tokenizer: Tokenizer,
    steps: int,
    lr: float = 1e-3,
    batch: int = 32,
    seed: int = 0,
    backbone_rate: float = 0.0,
    log: Callable[[str], None] = print,
    report: Callable[[Tensor], None] | None = None,
) -> None:
    """Train ESI on a checkpoint's own tokens, in place, on its device: see `plan_for`."""
    torch.manual_seed(seed)
    if model.esi is None:
        add_esi(model, ADDED)
    plan = plan_for(tokenizer, steps, lr, batch, seed, backbone_rate)
    train_esi(model, examples, plan, log, report)


def plan_for(
    tokenizer: Tokenizer, steps: int, lr: float, batch: int, seed: int, backbone_rate: float, decay: float = Plan.decay
) -> Plan:
    """The plan for a checkpoint, that stays as it is, or learns at ``backbone_rate`` times the learning rate, too.

    ``batch`` questions make a batch of the reader, and as many crops one of the search as the default model's plan has
    for so many.
    """
    rates = {"backbone": backbone_rate, "lm_head": backbone_rate}
    # A frozen model knows no marks: it is asked in words.
    frame = (backbone_rate and question_in_marks(tokenizer)) or question_in_words(tokenizer)
    search_steps, language_steps = (max(1, round(share * steps)) for share in (SEARCH_FIRST, LANGUAGE_LAST))
    return Plan(
        search_rates=rates,
        read_rates=rates | {"esi.search": SEARCH_RATE},
        search_steps=search_steps,
        read_steps=steps - search_steps - language_steps,
        language_steps=language_steps,
        language_rate=backbone_rate,
        lr=lr,
        decay=decay,
        crops=max(2, batch * Plan.crops // Plan.batch),
        batch=batch,
        seed=seed,
        frame=frame,
        plain_rows=batch * Plan.plain_rows // Plan.batch if backbone_rate else 0,
    )


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
