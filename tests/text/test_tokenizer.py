"""The shipped vocabulary: lossless for any text, exact spans, and the same tokens however the text arrives."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mamba_ssm
from mamba_ssm.errors import CheckpointError
from mamba_ssm.text.tokenizer import Encoded, Tokenizer

FOLDER = Path(mamba_ssm.__file__).parent / "weights" / "default"
TOKENIZER = Tokenizer.from_folder(FOLDER)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Text as books have it, dense in what might go wrong at a cut: quotes, digits, runs of white space, accents, emoji.
WORDS = ["word", "Überlänge", "don't", "'", "s", "’", "1984", "½", ".", '."', "--", "_", "a" * 40, "<|endoftext|>"]
ODDITIES = ["é", "e\u0301", "日本", "🎉", "👩\u200d🚀", "\u200b", "\x00"]
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\x1c", "\u3000", "\x85"]
PROSE = st.lists(st.sampled_from([*WORDS, *ODDITIES, *SPACES]), max_size=40).map("".join)


def joined(parts: list[Encoded]) -> Encoded:
    return Encoded(*(np.concatenate([getattr(part, name) for part in parts]) for name in Encoded._fields))


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def check_spans(text: str, encoded: Encoded) -> None:
    """The spans cover the text in order without a gap, and each token's own text lies in its span."""
    ids, starts, ends = encoded
    assert len(ids) == len(starts) == len(ends)
    position = 0
    for token, start, end in zip(ids, starts, ends, strict=True):
        assert start <= position <= end
        position = end
        alone = TOKENIZER.decode([token])
        if "\ufffd" not in alone:  # not a part of a character
            assert text[start:end] == alone
    assert position == len(text)


@given(ANY_TEXT | PROSE)
def test_any_text_comes_back_and_spans_are_exact(text: str) -> None:
    encoded = TOKENIZER.encode(text)
    assert TOKENIZER.decode(encoded.ids) == text
    check_spans(text, encoded)


def test_parts_of_one_character_cover_that_character() -> None:
    ids, starts, ends = TOKENIZER.encode("ab 👩 cd")
    emoji = [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if end == 4 and start >= 2]
    assert len(emoji) > 1  # the vocabulary has no such token
    assert {(int(starts[i]), int(ends[i])) for i in emoji} <= {(2, 4), (3, 4)}
    assert TOKENIZER.decode(ids[emoji]).strip() == "👩"


def test_binary_junk_comes_back() -> None:
    junk = bytes(range(256)) * 8
    text = junk.decode("latin-1")
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_lone_surrogates_are_read_as_the_replacement_character() -> None:
    encoded = TOKENIZER.encode("a\ud800b")
    assert TOKENIZER.decode(encoded.ids) == "a\ufffdb"
    assert encoded.ends[-1] == 3


@given(PROSE)
def test_special_tokens_spelled_in_text_are_text(text: str) -> None:
    text = f"<|endoftext|>{text}<|question|><|answer|>"
    ids = TOKENIZER.encode(text).ids
    assert not set(ids.tolist()) & set(TOKENIZER.special_ids.values())
    assert TOKENIZER.decode(ids) == text


def test_special_ids_have_their_numbers_and_no_text() -> None:
    assert (TOKENIZER.end_of_text, TOKENIZER.question, TOKENIZER.answer) == (0, 1, 2)
    assert TOKENIZER.vocab_size == 32768
    ids = TOKENIZER.encode("an answer").ids
    assert TOKENIZER.decode([1, *ids, 2, 0]) == "an answer"


@pytest.mark.parametrize("number", ["1867", " 482910", "3.14159"])
def test_digits_stand_alone(number: str) -> None:
    for token in TOKENIZER.encode(number).ids:
        assert sum(letter.isdigit() for letter in TOKENIZER.decode([token])) <= 1


@settings(max_examples=200)
@given(PROSE, st.lists(st.integers(0, 10_000), max_size=6), st.integers(60, 200))
def test_a_stream_gives_the_tokens_of_the_whole(text: str, cuts: list[int], block: int) -> None:
    # One safe cut in each block is the condition of the promise; the longest unbroken run above is bounded by this.
    text = " ".join(text[i : i + 20] + "w" for i in range(0, len(text), 20))
    whole = TOKENIZER.encode(text)
    parts = list(TOKENIZER.encode_stream(pieces_of(text, cuts), block=block))
    if not parts:
        assert text == ""
        return
    for got, expected in zip(joined(parts), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


@given(ANY_TEXT | PROSE, st.lists(st.integers(0, 10_000), max_size=6), st.integers(1, 30))
def test_blocks_too_small_for_a_safe_cut_still_lose_nothing(text: str, cuts: list[int], block: int) -> None:
    parts = list(TOKENIZER.encode_stream(pieces_of(text, cuts), block=block))
    again = list(TOKENIZER.encode_stream([text], block=block))
    assert [p.ids.tolist() for p in parts] == [p.ids.tolist() for p in again]  # the pieces never matter
    assert all(part.ends[-1] - part.starts[0] <= block for part in parts)
    assert "".join(TOKENIZER.decode(part.ids) for part in parts) == text
    if parts:
        check_spans(text, joined(parts))


def test_a_stream_is_read_no_further_than_its_block() -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 100
            yield "a" * 100  # no white space, ever

    next(TOKENIZER.encode_stream(endless(), block=1000))
    assert taken <= 1100


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\x00 not json"])
def test_a_missing_or_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)
