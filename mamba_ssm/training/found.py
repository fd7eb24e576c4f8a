"""What the search finds for the reader to learn from: found once, and kept in a file beside the run's checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_ssm.errors import TrainingError
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.evaluate import SHELF, mine
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.plan import Lessons, Source
from mamba_ssm.training.reading import Mined

if TYPE_CHECKING:
    from accelerate import Accelerator

FOUND = "found.safetensors"
BOOKS = (1, SHELF)  # articles of the two kinds of book that the reader sees
MINED = 20  # windows found for each question


def found_in(model: MambaLMHeadModel, examples: Examples) -> Mined:
    """What the search finds for the examples, in books of the two kinds."""
    return [mine(model, examples, articles, MINED) for articles in BOOKS]


def searched(lessons: Lessons, model: MambaLMHeadModel, path: Path, bf16: bool, accelerator: Accelerator) -> Lessons:
    """The lessons with what the search finds, which the first process writes, once in a run, and all read."""
    sources = [*lessons.sources, *([] if lessons.held_out is None else [lessons.held_out])]
    device = accelerator.device
    if accelerator.is_main_process and not path.is_file():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = [found_in(model.to(device).eval(), source.examples) for source in sources]
        part = path.with_name(f".{path.name}.part")
        try:
            save_file(
                {
                    f"{number}.{kind}.{name}": tensor
                    for number, mined in enumerate(found)
                    for kind, pair in enumerate(mined)
                    for name, tensor in zip(("starts", "scores"), pair, strict=True)
                },
                part,
            )
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path} cannot be written ({error}): make room, then --resume") from error
    accelerator.wait_for_everyone()
    try:
        tensors = load_file(path)
        searched = [replace(source, mined=_mined(tensors, number, source)) for number, source in enumerate(sources)]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is damaged ({error}): remove it, then --resume") from error
    held_out = None if lessons.held_out is None else searched.pop()
    return replace(lessons, sources=searched, held_out=held_out)


def _mined(tensors: dict[str, Tensor], number: int, source: Source) -> list[tuple[Tensor, Tensor]]:
    pairs = [(tensors[f"{number}.{kind}.starts"], tensors[f"{number}.{kind}.scores"]) for kind in range(len(BOOKS))]
    if any(len(tensor) != len(source.examples.questions) for pair in pairs for tensor in pair):
        raise ValueError("it is of other questions")
    return pairs
