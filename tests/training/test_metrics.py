"""Exact match and F1 as SQuAD's script has them, and intervals as textbooks have them."""

import pytest

from mamba_ssm.training.metrics import (
    best_of,
    calibration_error,
    exact_match,
    f1,
    normalise,
    risk_at_coverage,
    wilson,
)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Beatles!", "beatles"),
        ("  an  apple\ta\nday ", "apple day"),
        ("theater", "theater"),
        ("U.S.", "us"),
        ("re-elected", "reelected"),
        ("$1,000.50", "100050"),
        ("the", ""),
        ("Zürich", "zürich"),
        ("“quoted”", "“quoted”"),
    ],
)
def test_normalised(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


def test_exact_match_is_up_to_case_articles_and_punctuation() -> None:
    assert exact_match("the Denver Broncos.", "Denver broncos") == 1.0
    assert exact_match("Denver", "Denver Broncos") == 0.0


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("Denver Broncos", "the Denver Broncos", 1.0),
        ("Denver", "Denver Broncos", 2 / 3),  # precision 1, recall 1/2
        ("red green blue", "green yellow", 0.4),  # precision 1/3, recall 1/2
        ("go go go", "go go", 0.8),  # a word counts as often as it stands in both
        ("north", "south", 0.0),
        ("", "south", 0.0),
    ],
)
def test_f1_by_hand(said: str, right: str, expected: float) -> None:
    assert f1(said, right) == pytest.approx(expected)
    assert f1(right, said) == pytest.approx(expected)


def test_the_answer_that_suits_best_counts() -> None:
    assert best_of(f1, "Denver Broncos", ["Carolina", "Denver", "Denver Broncos football"]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-4)


def test_without_trials_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_calibration_error_is_how_far_confidence_is_from_the_share_that_is_right() -> None:
    assert calibration_error([0.5] * 4, [1, 0, 1, 0], bins=1) == 0
    assert calibration_error([0.9] * 10, [1] * 6 + [0] * 4, bins=1) == pytest.approx(0.3)
    # Two bins, by confidence and not by order: one 0.2 too sure, one 0.1 not sure enough.
    assert calibration_error([0.9, 0.2, 0.9, 0.2], [1, 0.4, 0.4, 0.2], bins=2) == pytest.approx(0.15)


def test_risk_is_of_the_most_confident() -> None:
    confidence, right = [0.1, 0.9, 0.5, 0.7], [0, 1, 1, 0]
    risks = [risk_at_coverage(confidence, right, c) for c in (0.25, 0.5, 0.75, 1.0)]
    assert risks == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
