"""Learning rates over the steps of a run, as shares of the highest one. A step's rate depends on its number alone."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""From a step, counted from 0, to the share of the learning rate."""


def cosine(steps: int, warmup: int) -> Schedule:
    """Up in a line over ``warmup`` steps, and down half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return lambda s: min((s + 1) / max(1, warmup), 0.5 + 0.5 * math.cos(math.pi * min(1.0, s / steps)))


def wsd(steps: int, warmup: int, decay: int) -> Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): level, and down in a line over the last steps."""
    return lambda s: min((s + 1) / max(1, warmup), 1.0, max(0, steps - s) / max(1, decay))
