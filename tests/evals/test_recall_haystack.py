"""Haystacks: exact lengths, pieces where they are said to be, any blocks, bounded memory."""

import random
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import example as at_least
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.recall.example import Piece
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.recall.haystack import Haystack
from mamba_ssm.training.recall.tasks import TASKS
from mamba_ssm.training.recall.words import Words

TOKENIZER = Tokenizer.from_folder(DEFAULT_MODEL)
PARAGRAPHS = [
    f"Paragraph {i} speaks of {i * 7} trees (and of rivers.) It has no end! “Does it?”" + "\n  x = 1" * (i % 3)
    for i in range(60)
]
FILLER = Filler.of_paragraphs(PARAGRAPHS, TOKENIZER)


def made(task, seed, split="test"):
    return TASKS[task](Words(random.Random(seed), split))


def whole(haystack, size=1000):
    return np.concatenate(list(haystack.blocks(size)))


def said(ids, span):
    return TOKENIZER.decode(ids[span[0] : span[1] + 1])


def test_every_token_knows_the_last_heading_before_it():
    example = made("chapters", 0)
    haystack = Haystack(FILLER, example.pieces, 4000, 0)
    ids, places = whole(haystack), np.arange(50, 4000, 97)
    titles, under = haystack.headings(places)
    for place, heading in zip(places.tolist(), (titles[i] for i in under), strict=True):
        before = re.findall(r"\n\n(Chapter \d+)", TOKENIZER.decode(ids[:place]))
        assert heading == (before[-1] if before else None)
    titles, under = Haystack(FILLER, made("alias", 0).pieces, 4000, 0).headings(places)
    assert titles == [None]
    assert not under.any()


@settings(max_examples=60)
@at_least(task="multi_value", seed=146, length=1200, split="train")  # a piece after one that ends in a number
@given(
    task=st.sampled_from(sorted(TASKS)),
    seed=st.integers(0, 1000),
    length=st.integers(1200, 6000),
    split=st.sampled_from(["train", "test"]),
)
def test_pieces_stand_where_they_are_said_to_and_change_nothing_else(task, seed, length, split):
    example = made(task, seed, split)
    haystack = Haystack(FILLER, example.pieces, length, seed)
    ids = whole(haystack)
    assert len(ids) == length
    assert haystack.sentences.keys() == set(example.pieces)
    # What stands with headings comes at the end of a paragraph, whatever that is.
    end = r"[.!?][\"')\]”]*|\n  x = 1" if task == "chapters" else r"\w{3}\W*[.!?][\"')\]”]*"
    ends = "|".join([end, *(re.escape(piece.text) for piece in example.pieces)])
    for piece, span in haystack.sentences.items():
        assert said(ids, span).strip() == piece.text
        before = TOKENIZER.decode(ids[: span[0]])
        assert not before or re.search(f"({ends})$", before)
        assert re.match(r"[ \n]|$", TOKENIZER.decode(ids[span[1] + 1 :]))
        if piece.answer:
            assert said(ids, haystack.answers[piece]).strip(" ().,:;") == piece.answer
    assert sum(last - first for first, last in haystack.gold(example)) >= 0
    firsts = [haystack.sentences[piece][0] for piece in sorted(example.pieces, key=lambda piece: piece.depth)]
    assert firsts == sorted(firsts)
    inside = np.zeros(length, dtype=bool)
    for first, last in haystack.sentences.values():
        assert not inside[first : last + 1].any()
        inside[first : last + 1] = True
    assert (ids[~inside] == whole(Haystack(FILLER, [], int((~inside).sum()), seed))).all()


@pytest.mark.parametrize("task", ["single_uuid", "chapters", "qa3"])
def test_a_haystack_is_tokenised_as_its_text_is(task):
    ids = whole(Haystack(FILLER, made(task, 3).pieces, 9000, 3))
    assert ids.tolist() == TOKENIZER.encode(TOKENIZER.decode(ids)).ids.tolist()


@settings(max_examples=40)
@given(size=st.integers(1, 7000), length=st.integers(1500, 6000), seed=st.integers(0, 99))
def test_blocks_of_any_size_are_the_same_stream(size, length, seed):
    haystack = Haystack(FILLER, made("variables", seed).pieces, length, seed)
    blocks = list(haystack.blocks(size))
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size
    assert (np.concatenate(blocks) == whole(haystack)).all()


def test_headings_are_paragraphs():
    example = made("chapters", 1)
    text = TOKENIZER.decode(whole(Haystack(FILLER, example.pieces, 4096, 1)))
    assert [int(number) for number in re.findall(r"^Chapter (\d+)$", text, re.MULTILINE)] == list(range(1, 13))


def test_after_the_end_paragraphs_come_in_another_order_each_once_a_round():
    text = TOKENIZER.decode(whole(Haystack(FILLER, [], 4 * len(FILLER.tokens), 0)))
    numbers = [int(n) for n in re.findall(r"^Paragraph (\d+) ", text, re.MULTILINE)]
    first = 60 - numbers[0]
    assert numbers[:first] == list(range(numbers[0], 60))
    rounds = numbers[first : first + 60], numbers[first + 60 : first + 120]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(60))
    assert rounds[0] != rounds[1] != list(range(60))


def test_depths_are_kept():
    pieces = [Piece(f"The passkey of {i} is {i * 7919}.", i / 100, str(i * 7919)) for i in range(100)]
    haystack = Haystack(FILLER, pieces, 40_000, 5)
    assert [haystack.sentences[piece][0] / 40_000 for piece in pieces] == pytest.approx(
        [piece.depth for piece in pieces], abs=0.002
    )


def test_seeds_repeat_and_differ():
    first, again, other = (whole(Haystack(FILLER, [], 3000, seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="more than 50 tokens"):
        Haystack(FILLER, made("variables", 0).pieces, 50, 0)


def test_pieces_that_are_equal_are_laid_once():
    piece = Piece("Chapter 1", 0.5, gold=False, heading=True)
    assert TOKENIZER.decode(whole(Haystack(FILLER, [piece, piece], 2000, 0))).count("Chapter 1") == 1


def test_memory_does_not_grow_with_the_length():
    def peak(length):
        tracemalloc.start()
        haystack = Haystack(FILLER, made("multi_value", 0).pieces, length, 0)
        assert sum(len(block) for block in haystack.blocks(4096)) == length
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10_000)
    assert peak(400_000) < 1.2 * peak(40_000)


def test_files_are_tokenised_once_and_mapped(tmp_path):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("\n\n".join(PARAGRAPHS[:30]) + "\n\n")
    files[1].write_text("\n\n".join(PARAGRAPHS[30:]))
    filler = Filler.of_files(files, TOKENIZER, tmp_path / "cache")
    assert isinstance(filler.tokens, np.memmap)
    assert (filler.tokens == FILLER.tokens).all()
    assert (filler.paragraphs == FILLER.paragraphs).all()
    (path,) = (tmp_path / "cache").iterdir()
    written = path.stat().st_mtime_ns
    Filler.of_files(files, TOKENIZER, tmp_path / "cache")
    assert path.stat().st_mtime_ns == written
    files[1].write_text("Another text.")
    assert len(Filler.of_files(files, TOKENIZER, tmp_path / "cache").tokens) < len(FILLER.tokens)


def test_noise_is_ruler_s():
    assert (
        TOKENIZER.decode(whole(Haystack(Filler.noise(TOKENIZER), [], 100, 0))).count("The grass is green. The sky") >= 3
    )
