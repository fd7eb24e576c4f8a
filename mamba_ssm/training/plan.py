"""What training ESI follows and learns from: numbers, and questions with what was found for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mamba_ssm.training.examples import Examples
from mamba_ssm.training.reading import MARKS, Frame, Mined, Taught

READ = 8  # windows read of a question's


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and on how much at a time.

    ``search_rates`` and ``read_rates``: shares of the learning rate by prefix of a parameter's name, 0 to freeze, while
    the search is trained and while the reader is; what has no part in these is frozen. ``language_rate``: of the
    language model's layers after the encoder, when these are trained. ``decay``: of matrices. ``crops`` article crops
    of ``crop`` tokens, a multiple of a block, make a batch of the search; ``batch`` questions one of the reader.
    ``frame`` stands around a question where the language model is asked it; it also learns to answer without ESI,
    ``plain_rows`` questions at a time.
    """

    search_rates: Mapping[str, float]
    read_rates: Mapping[str, float]
    search_steps: int
    read_steps: int
    language_steps: int
    language_rate: float = 1.0
    lr: float = 1e-3
    decay: float = 0.01
    crops: int = 12
    crop: int = 4032
    batch: int = 96
    seed: int = 0
    frame: Frame = MARKS
    plain_rows: int = 16


@dataclass(frozen=True)
class Source:
    """Examples, how many windows are read of a question's, and what the search found, once it has searched."""

    examples: Examples
    read: int = READ
    mined: Mined = ()
    taught: Sequence[Taught] | None = None


@dataclass(frozen=True)
class Lessons:
    """What there is to learn from: sources that take turns, and what is held out. ``name`` tells them from others.

    ``headings``: asked of the search alone.
    """

    sources: Sequence[Source]
    held_out: Source | None = None
    name: str = ""
    device: torch.device | str = "cpu"
    headings: Examples | None = None
