"""Articles to token arrays, with the tokenizer that is shipped."""

from pathlib import Path

import numpy as np
import pytest

import mamba_ssm
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.evaluate import absolute_gold, recall, window_ids
from mamba_ssm.training.examples import MAX_QUESTION, Examples, build_examples
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
