"""Which tokens each limit keeps, against sets worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mamba_ssm.utils.sampling import draw, modify_logit_for_repetition_penalty, sample

PROBABILITIES = torch.tensor([[0.05, 0.4, 0.2, 0.3, 0.05]])


def drawn(**limits) -> set[int]:
    logits = PROBABILITIES.log().expand(4000, 5)
    return set(sample(logits, generator=torch.Generator().manual_seed(0), **limits).tolist())


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, {1}),
        ({"top_k": 0}, {0, 1, 2, 3, 4}),
        ({"top_k": 3}, {1, 3, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_k": 0, "top_p": 0.65}, {1, 3}),
        ({"top_k": 0, "top_p": 0.75}, {1, 3, 2}),
        ({"top_k": 0, "top_p": 0.01}, {1}),
        ({"top_k": 0, "top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 0, "min_p": 0.45}, {1, 3, 2}),
        ({"top_k": 0, "min_p": 0.6}, {1, 3}),
        ({"top_k": 2, "top_p": 0.5}, {1}),  # within the two, 0.4 of 0.7 is enough
        ({"top_k": 0, "min_p": 0.6, "temperature": 5.0}, {0, 1, 2, 3, 4}),  # heat comes before the limits
        ({"top_k": 0, "temperature": 0.01}, {1}),
    ],
)
def test_limits_keep_the_right_tokens(limits, kept):
    assert drawn(**limits) == kept


def test_frequencies_follow_the_probabilities():
    tokens = sample(PROBABILITIES.log().expand(50_000, 5), top_k=0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tokens.bincount(minlength=5) / 50_000, PROBABILITIES[0], atol=0.01, rtol=0)


def test_the_logits_given_are_not_changed():
    logits = torch.randn(2, 9)
    before = logits.clone()
    sample(logits, top_k=3, top_p=0.5, min_p=0.2, temperature=0.7)
    assert torch.equal(logits, before)


@given(st.integers(0, 12), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 10))
def test_the_likeliest_token_is_always_allowed(top_k, top_p, min_p, temperature):
    logits = torch.tensor([[0.0, -3.0, 8.0, 1.0], [30.0, -30.0, 0.0, 29.0]])
    tokens = sample(logits, top_k, top_p, min_p, temperature)
    assert ((tokens >= 0) & (tokens < 4)).all()


def test_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits = torch.tensor([[2.0, -2.0, 1.0, 3.0]])
    out = modify_logit_for_repetition_penalty(logits, torch.tensor([[0, 1, 0]]), 2.0)
    torch.testing.assert_close(out, torch.tensor([[1.0, -4.0, 1.0, 3.0]]))


@pytest.mark.parametrize("limits", [{"temperature": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}])
def test_nonsense_is_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        sample(PROBABILITIES, **{"top_k": 0} | limits)


def test_draw_inverts_the_distribution_function():
    """Against sums of the probabilities, in order: 0.05, 0.45, 0.65, 0.95, 1."""
    uniform = torch.tensor([0.0, 0.049, 0.051, 0.449, 0.451, 0.649, 0.651, 0.949, 0.951, 1 - 2**-24])
    ones = torch.ones(len(uniform))
    logits = PROBABILITIES.log().expand(len(uniform), 5)
    assert draw(logits, ones, ones, uniform).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_draw_takes_the_settings_of_each_row():
    """Of the second row only the two likeliest tokens are left, the third is cold, the last token has no mass."""
    logits = torch.cat([PROBABILITIES.log(), torch.tensor([[-torch.inf]])], dim=1).expand(4, 6)
    temperature = torch.tensor([1.0, 1.0, 1e-3, 1.0])
    top_p = torch.tensor([1.0, 0.65, 1.0, 1e-5])
    kept = [set() for _ in range(4)]
    for uniform in torch.linspace(0, 1 - 2**-24, 101):
        for row, token in enumerate(draw(logits, temperature, top_p, uniform.expand(4)).tolist()):
            kept[row].add(token)
    assert kept == [{0, 1, 2, 3, 4}, {1, 3}, {1}, {1}]
