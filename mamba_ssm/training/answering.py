"""Train a checkpoint to answer from books: what ``mamba-esi train esi`` and ``train qa`` run.

The plan and the stages are those of esi_training.py; here each stage is a run of the engine, with a folder of its own
for checkpoints and metrics. What the search found for the reader lies beside these, for a run that is resumed.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mamba_ssm.book.engine import DEFAULT_MODEL, Engine
from mamba_ssm.errors import CheckpointError, TrainingError
from mamba_ssm.models import adapter
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.config import EsiConfig, QAConfig
from mamba_ssm.training.engine import Metrics, run
from mamba_ssm.training.esi_training import ADDED, add_esi, plan_for, warmed
from mamba_ssm.training.evaluate import SHELF, quality
from mamba_ssm.training.examples import Examples, hold_out
from mamba_ssm.training.found import FOUND, searched
from mamba_ssm.training.lm import BLOCKS
from mamba_ssm.training.plan import Lessons, Plan, Source
from mamba_ssm.training.processes import processes
from mamba_ssm.training.questions import cut, describe, load_questions
from mamba_ssm.training.stages import LanguageStage, ReaderStage, SearchStage, Stage


def train_answering(
    config: EsiConfig,
    resume: bool = False,
    report: Callable[[Metrics], None] = lambda metrics: None,
    say: Callable[[str], None] = lambda line: None,
) -> signal.Signals | None:
    """Train, and write ESI, or of a QAConfig the whole model, to ``config.out``.

    Returns the signal that ended it early, if one did; nothing is written then but checkpoints. ``report`` is given the
    metrics, whose steps count on from stage to stage. Raises TrainingError, CheckpointError, QuestionError, BookError.
    """
    out = Path(config.out)
    _check_free(out, resume)
    engine = Engine.load(config.model, "cpu")
    model, tokenizer = engine.model, engine.tokenizer
    examples, held_out = _examples(config, tokenizer, say)
    rate = config.backbone_rate if isinstance(config, QAConfig) else 0.0
    plan = plan_for(tokenizer, config.steps, config.lr, config.batch, config.seed, rate, config.weight_decay)
    torch.manual_seed(config.seed)
    if model.esi is None:
        add_esi(model, ADDED)
    lessons = Lessons([Source(examples)], None if held_out is None else Source(held_out), _name(model, examples))
    with processes(config, BLOCKS) as accelerator:
        accelerator.wait_for_everyone()  # all have seen the folder free
        before = 0
        stages: list[tuple[type[Stage[Any]], int]] = [
            (SearchStage, plan.search_steps),
            (ReaderStage, plan.read_steps),
            (LanguageStage, plan.language_steps),
        ]
        for kind, steps in stages:
            folder = out / kind.name
            _make(folder)
            if kind is ReaderStage:
                lessons = searched(lessons, model, folder / FOUND, config.precision == "bf16", accelerator)
            say(f"{kind.name}: {steps} steps")

            def told(metrics: Metrics, before: int = before) -> None:
                report(metrics | {"step": before + metrics["step"]})

            of_stage = replace(
                config,
                out=str(folder),
                steps=steps,
                warmup=warmed(config.warmup, steps),
                eval_every=0 if held_out is None else config.eval_every,
            )
            stopped = run(kind(model, plan, lessons), of_stage, accelerator, resume, told)
            if stopped is not None:
                return stopped
            before += steps
        if accelerator.is_main_process:
            measured = None
            if held_out is not None:
                measured = _measured(model, held_out, tokenizer, config.precision == "bf16")
                told_of = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in measured.items())
                say(f"held-out questions: {told_of}")
            _write(model, tokenizer, config, measured)
        accelerator.wait_for_everyone()
        return None


def _examples(config: EsiConfig, tokenizer: Tokenizer, say: Callable[[str], None]) -> tuple[Examples, Examples | None]:
    """To learn from, and held out, in articles that are no longer than a crop."""
    if config.questions is not None:
        examples, left_out = load_questions(config.questions, tokenizer)
        if left_out:
            say(f"{config.questions}: {describe(left_out)}")
    else:
        assert config.data is not None
        examples = _prepared(Path(config.data), tokenizer, config.model)
    held_out = None
    if config.eval_every:
        examples, held_out = hold_out(examples, config.seed)
        if held_out is None:
            say("too few questions to hold some out: nothing says how well it does on others")
        else:
            say(f"held out: {len(held_out.questions):,} questions")
    say(f"training on {len(examples.questions):,} questions, {len(examples.ids):,} tokens of books")
    if config.questions is None:
        return examples, held_out
    return cut(examples, Plan.crop), None if held_out is None else cut(held_out, Plan.crop)


def _prepared(folder: Path, tokenizer: Tokenizer, model: str) -> Examples:
    """The default model's data. Raises TrainingError where it is none, or means other tokens to this checkpoint."""
    if not tokenizer.same_vocabulary(Tokenizer.from_folder(DEFAULT_MODEL)):
        raise TrainingError(
            f"{folder} is in tokens of the default model, and {model} has other ones: give --questions FILE instead"
        )
    path = folder / "train.safetensors"
    try:
        return Examples.load(path)
    except (OSError, SafetensorError, TypeError) as error:
        raise TrainingError(f"{path} is no prepared data ({error}): run scripts/prepare_data.py") from error


def _name(model: MambaLMHeadModel, examples: Examples) -> str:
    """What tells a run's data, and the model that it starts from, from others."""
    digest = hashlib.sha256(adapter.fingerprint({f"start.{k}": v for k, v in model.state_dict().items()}).encode())
    for field in fields(examples):
        digest.update(getattr(examples, field.name).tobytes())
    return digest.hexdigest()


def _check_free(out: Path, resume: bool) -> None:
    """Raises CheckpointError where the folder of the run holds something else."""
    free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    runs = (out / SearchStage.name).is_dir()
    if not free and not (resume and runs):
        instead = ", or go on with --resume" if runs else ""
        raise CheckpointError(f"{out} exists and is not an empty folder: give a new one with --out{instead}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made ({error.strerror}): give another with --out") from error


def _measured(model: MambaLMHeadModel, held_out: Examples, tokenizer: Tokenizer, bf16: bool) -> Metrics:
    device = model.backbone.embedding.weight.device.type
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        return quality(model.eval(), held_out, SHELF, tokenizer.decode)


def _write(model: MambaLMHeadModel, tokenizer: Tokenizer, config: EsiConfig, measured: Metrics | None) -> None:
    try:
        if measured is not None:
            line = {"step": config.steps} | {f"held_out_{name}": value for name, value in measured.items()}
            with (Path(config.out) / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if isinstance(config, QAConfig):
            tokenizer.save(config.out)
            model.save_pretrained(config.out)
        else:
            model.save_esi(config.out)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{config.out} cannot be written to ({error}): make room, then --resume") from error
