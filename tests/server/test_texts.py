"""Text that is shown as it comes is the text of all tokens, cut before the first stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.server.texts import TextStream
from mamba_ssm.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(DEFAULT_MODEL)
WRITING = st.text(
    st.sampled_from("ab \n🌱éß") | st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40
)


def stream(ids, stops):
    text = TextStream(TOKENIZER.decode, stops)
    parts = []
    for token in ids:
        parts.append(text.push(token))
        if text.stopped:
            return parts
    return [*parts, text.flush()]


@given(WRITING, st.lists(st.text(st.sampled_from("ab \n🌱é"), min_size=1, max_size=4), max_size=3))
def test_parts_are_the_whole_up_to_the_first_stop(text, stops):
    """The first one to be complete, by the tokens."""
    ids = TOKENIZER.encode(text).ids.tolist()
    want = text
    for count in range(1, len(ids) + 1):
        said = TOKENIZER.decode(ids[:count]).rstrip("\ufffd")  # without half a character
        if places := [said.find(stop) for stop in stops if stop in said]:
            want = said[: min(places)]
            break
    assert "".join(stream(ids, stops)) == want


def test_a_character_of_several_tokens_comes_whole():
    ids = TOKENIZER.encode("𒀱").ids.tolist()
    assert len(ids) > 1
    assert stream(ids, []) == [""] * (len(ids) - 1) + ["𒀱", ""]


def test_nothing_is_shown_that_may_begin_a_stop_string():
    text = TextStream(lambda ids: "".join(map(chr, ids)), ["xyz"])
    assert [text.push(ord(c)) for c in "axyxy"] == ["a", "", "", "xy", ""]
    assert text.flush() == "xy"


@pytest.mark.parametrize("tail", ["x", "xy"])
def test_bytes_that_never_become_a_character_are_shown_in_the_end(tail):
    half = TOKENIZER.encode("𒀱").ids.tolist()[:-1]
    text = "".join(stream([*half, *TOKENIZER.encode(tail).ids.tolist()], []))
    assert text.endswith(tail)
    assert "\ufffd" in text
