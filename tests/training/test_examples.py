"""Articles to token arrays, with the tokenizer that is shipped."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mamba_ssm
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.evaluate import absolute_gold, recall, window_ids
from mamba_ssm.training.examples import MAX_QUESTION, Examples, build_examples, hold_out
from mamba_ssm.training.retrieval import SearchBatches
from mamba_ssm.training.squad import Article, Paragraph, Question, article_text

TOKENIZER = Tokenizer.from_folder(Path(mamba_ssm.__file__).parent / "weights" / "default")


def paragraph(text: str, **questions: tuple[str, ...]) -> Paragraph:
    return Paragraph(
        text,
        [
            Question(f"{q}-{text[:5]}", q.replace("_", " ") + "?", [(text.index(a), a) for a in answers])
            for q, answers in questions.items()
        ],
    )


ARTICLES = [
    Article(
        "Plants",
        [
            paragraph(
                "Chloroplasts, in plants and algae, turn sunlight into sugar; a leaf cell has 10 to 100 of them.",
                How_many_has_a_leaf_cell=("10 to 100", "100"),
                What_do_they_make=("sugar",),
            ),
            paragraph("Mosses grow near Überlingen.", Where_do_mosses_grow=("Überlingen",)),
        ],
    ),
    Article("Empty", [paragraph("Nothing is asked here.")]),
    Article("Stars", [paragraph("The Sun is 4.6 billion years old.", **{"how " * 60 + "old": ("4.6 billion years",)})]),
]


@pytest.fixture(scope="module")
def examples() -> Examples:
    return build_examples(ARTICLES, TOKENIZER)


def asked() -> list[tuple[int, int, int, Question]]:
    """Article, first and last character of the paragraph, and question, in order."""
    found = []
    for number, article in enumerate(ARTICLES):
        _, starts = article_text(article)
        for start, p in zip(starts, article.paragraphs, strict=True):
            found += [(number, start, start + len(p.text), q) for q in p.questions]
    return found


def test_gold_tokens_cover_the_answer_and_no_more(examples: Examples) -> None:
    assert len(examples.questions) == len(asked()) == 4
    for row, (number, start, _, question) in enumerate(asked()):
        assert examples.article[row] == number
        text, _ = article_text(ARTICLES[number])
        ids, firsts, ends = TOKENIZER.encode(text)
        assert np.array_equal(examples.text(number), ids)
        for (first, last), (at, answer) in zip(examples.gold[row].tolist(), question.answers, strict=False):
            begin, end = start + at, start + at + len(answer)
            assert text[begin:end] == answer
            assert firsts[first] <= begin < ends[first]
            assert firsts[last] < end <= ends[last]
            assert TOKENIZER.decode(ids[first : last + 1].tolist()).strip() == answer
        assert (examples.gold[row, len(question.answers) :] == -1).all()


def test_paragraphs_are_cut_at_their_ends(examples: Examples) -> None:
    for row, (number, start, end, _) in enumerate(asked()):
        text, _ = article_text(ARTICLES[number])
        first, after = examples.paragraph[row].tolist()
        assert TOKENIZER.decode(examples.text(number)[first:after].tolist()).strip() == text[start:end]


def test_questions_are_padded_or_cut(examples: Examples) -> None:
    assert examples.questions.shape[1] == MAX_QUESTION
    short = examples.questions[1]
    assert TOKENIZER.decode(short[short > 0].tolist()) == "What do they make?"
    assert (examples.questions[3] > 0).all()


def test_saved_and_loaded(examples: Examples, tmp_path: Path) -> None:
    examples.save(tmp_path / "e.safetensors")
    loaded = Examples.load(tmp_path / "e.safetensors")
    for name, array in vars(examples).items():
        assert np.array_equal(getattr(loaded, name), array), name
        assert getattr(loaded, name).dtype == np.int64


def test_gold_in_tokens_of_all_articles(examples: Examples) -> None:
    gold = absolute_gold(examples)
    for row in range(4):
        for (a, b), (first, last) in zip(gold[row].tolist(), examples.gold[row].tolist(), strict=True):
            if first < 0:
                assert (a, b) == (-1, -1)
            else:
                own = examples.text(int(examples.article[row]))[first : last + 1]
                assert examples.ids[a : b + 1].tolist() == own.tolist()


def test_windows_past_the_end_and_of_nothing_are_padding() -> None:
    import torch

    ids = torch.arange(1, 11)
    assert window_ids(ids, torch.tensor([[0, 8, -1]]), 4).tolist() == [[[1, 2, 3, 4], [9, 10, 0, 0], [0, 0, 0, 0]]]


def test_recall_counts_the_questions_whose_first_windows_hold_an_answer() -> None:
    import torch

    starts = torch.tensor([[0, 32, 64], [0, 32, 64], [0, -1, -1]])
    gold = torch.tensor([[[10, 12]], [[70, 71]], [[100, 100]]])
    assert recall(starts, gold, 32, (1, 2, 3)) == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_crops_hold_the_answers_of_their_questions(examples: Examples) -> None:
    batches = SearchBatches(examples, n_crops=3, crop_tokens=48, max_questions=8, seed=(0,))
    for batch in map(batches.at, range(5)):
        assert batch.crops.shape == (3, 48)
        for question, crop, gold in zip(batch.questions, batch.crop.tolist(), batch.gold, strict=True):
            (row,) = [i for i, q in enumerate(examples.questions) if np.array_equal(q, question.numpy())]
            first, last = gold[0].tolist()
            answer = TOKENIZER.decode(batch.crops[crop, first : last + 1].tolist()).strip()
            assert answer == asked()[row][3].answers[0][1]


def test_the_first_articles_alone(examples: Examples) -> None:
    plants = examples.first(1)
    assert np.array_equal(plants.ids, examples.text(0))
    assert plants.offsets.tolist() == [0, len(plants.ids)]
    assert len(plants.questions) == 3
    assert np.array_equal(plants.gold, examples.gold[:3])


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 3))
def test_processes_share_the_questions_of_a_step_and_have_all_its_crops(step: int, ranks: int, seed: int) -> None:
    examples = build_examples(ARTICLES, TOKENIZER)
    make = partial(SearchBatches, examples, n_crops=2, crop_tokens=48, max_questions=8, seed=(seed,), word_dropout=0.5)
    whole, batches = make().at(step), make()
    parts = [batches.at(step, rank, ranks) for rank in reversed(range(ranks))][::-1]
    rows = len(whole.questions)
    assert all(np.array_equal(part.crops, whole.crops) for part in parts)
    for name in ("questions", "crop", "gold"):
        shares = [getattr(part, name).tolist() for part in parts]
        if rows < ranks:
            assert all(share == getattr(whole, name).tolist() for share in shares)
        else:
            assert [shares[row % ranks][row // ranks] for row in range(rows)] == getattr(whole, name).tolist()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=80), st.integers(0, 5))
def test_a_fiftieth_of_the_questions_is_held_out(asked: list[int], seed: int) -> None:
    """In whole articles, unless these are more than a tenth."""
    article = np.repeat(np.arange(len(asked)), asked)
    n = len(article)
    numbers = np.arange(1, n + 1)
    examples = Examples(
        ids=np.repeat(np.arange(len(asked)), 3),
        offsets=3 * np.arange(len(asked) + 1),
        questions=numbers[:, None],
        article=article,
        gold=np.zeros((n, 1, 2), dtype=np.int64),
        paragraph=np.tile([[0, 3]], (n, 1)),
    )
    learned, held_out = hold_out(examples, seed)
    if held_out is None:
        assert learned is examples
        assert n < 50
        return
    assert sorted([*learned.questions[:, 0], *held_out.questions[:, 0]]) == numbers.tolist()
    assert n // 50 <= len(held_out.questions) <= max(n // 50, n // 10)
    for part in (learned, held_out):
        for question, number in zip(part.questions[:, 0], part.article, strict=True):
            assert part.text(number).tolist() == [article[question - 1]] * 3
    if len(held_out.ids) < len(examples.ids):
        assert not set(learned.ids) & set(held_out.ids)
    else:
        assert len(held_out.questions) == n // 50


def test_of_many_articles_whole_ones_are_held_out() -> None:
    n = 200
    zeros = np.zeros((n, 1, 2), dtype=np.int64)
    each = np.arange(n)
    examples = Examples(each, np.arange(n + 1), each[:, None], each, zeros, zeros[:, 0])
    learned, held_out = hold_out(examples, 0)
    assert held_out is not None
    assert (len(learned.ids), len(held_out.ids)) == (196, 4)
    again = hold_out(examples, 0)[1]
    assert again is not None
    assert np.array_equal(again.ids, held_out.ids)
    assert not np.array_equal(hold_out(examples, 1)[0].ids, learned.ids)
