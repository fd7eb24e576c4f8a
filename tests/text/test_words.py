"""Answers are whole words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_ssm.text.words import whole_words


def whole(pieces, first, last):
    first, last = whole_words(pieces.__getitem__, len(pieces), first, last)
    return "".join(pieces[first : last + 1])


@pytest.mark.parametrize(
    ("pieces", "first", "last", "answer"),
    [
        ([" code", " 4", "1", "7", "."], 2, 2, " 417"),
        ([" say", " con", "da", "eld"], 1, 2, " condaeld"),
        ([" red", "-", "po", "nd", ","], 0, 2, " red-pond"),
        ([" Z", "ü", "rich", " lies"], 1, 1, " Zürich"),
        (["東", "京", "都", "に"], 1, 2, "京都"),  # no spaces: where a word ends is not to be seen
        ([" whole", " words"], 0, 0, " whole"),
    ],
)
def test_what_is_missing_of_a_word_is_added(pieces, first, last, answer):
    assert whole(pieces, first, last) == answer


@given(st.lists(st.text("ab1 -.", min_size=1, max_size=3), min_size=1, max_size=12), st.data())
def test_no_answer_begins_or_ends_inside_a_word(pieces, data):
    first = data.draw(st.integers(0, len(pieces) - 1))
    last = data.draw(st.integers(first, len(pieces) - 1))
    begin, end = whole_words(pieces.__getitem__, len(pieces), first, last)
    assert begin <= first <= last <= end
    before, inside, after = ("".join(part) for part in (pieces[:begin], pieces[begin : end + 1], pieces[end + 1 :]))
    assert not re.search(r"\w$", before) or not re.match(r"\w", inside)
    assert not re.search(r"\w$", inside) or not re.match(r"\w", after)
    if begin < first:
        assert re.search(r"\w$", pieces[first - 1])
