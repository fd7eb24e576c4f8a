"""Where the passkey goes, and when an answer is right."""

import json
import random
import re
import sys

import passkey
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer

TEXT = "One thing. Another thing! Is it? (Yes.)\n\nA heading\n\nThe last sentence has no end"


@given(depth=st.floats(0, 1))
def test_the_sentence_stands_between_sentences_and_changes_nothing_else(depth):
    text, at = passkey.plant(TEXT, "482913", depth)
    sentence = "The passkey is 482913."
    assert text[at : at + len(sentence)] == sentence
    assert text.count("482913") == 1
    assert re.search(r"(^|[.!?][\"')]*\s+|\n\n|no end )$", text[:at])
    rest = text[:at] + text[at + len(sentence) + 1 :]
    assert rest.rstrip() == TEXT
    assert at >= int(depth * len(TEXT))


def test_a_key_that_the_text_says_is_refused():
    with pytest.raises(ValueError, match="482913"):
        passkey.plant("It cost 482913 francs.", "482913", 0.5)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("482913", True), ("The passkey is 482913.", True), ("4829130", False), ("48291", False), ("482913 or 7", False)],
)
def test_right_is_exactly_the_six_digits(answer, right):
    assert passkey.is_right(answer, "482913") is right


@settings(max_examples=20)
@given(tokens=st.integers(50, 3000), seed=st.integers(0, 99))
def test_haystacks_have_the_length_asked_for_also_beyond_the_filler(tmp_path_factory, tokens, seed):
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    path = tmp_path_factory.mktemp("filler") / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i} speaks of {i * 7} trees, and of rivers too." for i in range(40)))
    filler = passkey.Filler.read([path], tokenizer)
    text = filler.text(tokens, random.Random(seed))
    assert abs(len(tokenizer.encode(text).ids) - tokens) < 30 + tokens / 10


def test_a_run_keeps_every_trial(tiny_model, tmp_path, monkeypatch):
    book, out = tmp_path / "book.txt", tmp_path / "passkey.json"
    book.write_text("\n\n".join(f"Paragraph {i} speaks of trees. It ends." for i in range(60)))
    arguments = ["--model", tiny_model, "--device", "cpu", "--filler", str(book), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["passkey.py", *arguments, "--n", "3", "--lengths", "300", "900"])
    assert passkey.main() == 0
    result = json.loads(out.read_text())
    assert result["complete"] is True
    assert [trial["length"] for trial in result["trials"]] == [300] * 3 + [900] * 3
    assert all(i / 3 <= trial["depth"] + 0.1 for i, trial in enumerate(result["trials"][:3]))
    assert set(result["lengths"]) == {"300", "900"}
