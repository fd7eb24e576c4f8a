"""Exact match and F1 of answers as SQuAD defines them (Rajpurkar et al. 2016, section 6), and intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from mamba_ssm.text.normalise import normalise


def exact_match(prediction: str, truth: str) -> float:
    return float(normalise(prediction) == normalise(truth))


def f1(prediction: str, truth: str) -> float:
    """Harmonic mean of precision and recall of the words."""
    said, right = normalise(prediction).split(), normalise(truth).split()
    common = sum((Counter(said) & Counter(right)).values())
    return 2.0 * common / (len(said) + len(right)) if common else 0.0


def best_of(metric: Callable[[str, str], float], prediction: str, truths: Sequence[str]) -> float:
    """The metric against whichever right answer suits best."""
    return max(metric(prediction, truth) for truth in truths)


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); 95% by default."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_error(confidence: Sequence[float], right: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015) over bins of as many answers each, 0 to 1.

    The mean over bins of how far the mean confidence is from the share that is right.
    """
    pairs = sorted(zip(confidence, right, strict=True))
    cuts = [len(pairs) * i // bins for i in range(bins + 1)]
    gaps = [abs(sum(c - r for c, r in pairs[a:b])) for a, b in pairwise(cuts)]
    return sum(gaps) / len(pairs)


def risk_at_coverage(confidence: Sequence[float], right: Sequence[float], coverage: float) -> float:
    """The share of wrong answers among the most confident ``coverage`` of all (El-Yaniv & Wiener 2010)."""
    ranked = [r for _, r in sorted(zip(confidence, right, strict=True), key=lambda pair: -pair[0])]
    kept = ranked[: max(1, round(coverage * len(ranked)))]
    return 1 - sum(kept) / len(kept)
