"""A user's question file: what is trained on, what is left out and why, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import mamba_ssm
from mamba_ssm.errors import BookError, QuestionError
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.questions import NOT_SPELLED, TOO_LONG, cut, describe, load_questions

TOKENIZER = Tokenizer.from_folder(Path(mamba_ssm.__file__).parent / "weights" / "default")
BOOK = "In 1995 the lake had 5 boats. In Zürich the\nGreat  Fire began in 1666. It had 5 causes. " + "And so on. " * 40


@pytest.fixture
def file(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "lake.txt").write_text(BOOK, encoding="utf-8")
    (tmp_path / "fire.md").write_text("# Fire\n\nIt began on Sunday.", encoding="utf-8")

    def write(*rows):
        path = tmp_path / "questions.jsonl"
        lines = [row if isinstance(row, str) else json.dumps({"book": "books/lake.txt"} | row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def spelled(examples, row):
    """The text of a question's gold tokens."""
    first, last = examples.gold[row, 0]
    return TOKENIZER.decode(examples.text(examples.article[row])[first : last + 1]).strip()


def test_an_answer_is_where_it_is_first_said_as_whole_words_or_where_start_says(file):
    path = file(
        {"question": "How many boats?", "answer": "5"},
        {"question": "How many causes?", "answer": "5", "start": BOOK.index("5 causes")},
        "",
        {"question": "What began?", "answer": "Great Fire", "id": 7},
        {"book": "fire.md", "question": "When?", "answer": "Sunday"},
    )
    examples, left_out = load_questions(path, TOKENIZER)
    assert left_out == {}
    firsts = examples.gold[:, 0, 0].tolist()
    text = TOKENIZER.encode(BOOK)
    assert text.starts[firsts[0]] <= BOOK.index("5 boats") < text.ends[firsts[0]]
    assert text.starts[firsts[1]] <= BOOK.index("5 causes") < text.ends[firsts[1]]
    assert spelled(examples, 2).split() == ["Great", "Fire"]
    assert spelled(examples, 3) == "Sunday"
    assert [TOKENIZER.decode(q) for q in examples.questions] == [
        "How many boats?",
        "How many causes?",
        "What began?",
        "When?",
    ]
    assert examples.article.tolist() == [0, 0, 0, 1]


def test_what_a_book_does_not_spell_is_left_out_and_counted(file):
    good = {"question": "How many boats?", "answer": "5"}
    path = file(
        {"question": "Who?", "answer": "Nobody"},
        good,
        {"question": "Where?", "answer": "Zürich", "start": 3},
        {"question": "How long?", "answer": ("And so on. " * 9).strip()},
    )
    examples, left_out = load_questions(path, TOKENIZER)
    assert len(examples.questions) == 1
    assert spelled(examples, 0) == "5"
    assert left_out == {NOT_SPELLED: [1, 3], TOO_LONG: [4]}
    assert describe(left_out).startswith("2 left out (lines 1, 3): the book does not spell")
    assert "\n" not in describe(left_out)
    with pytest.raises(QuestionError, match=r"no question in it .* 1 left out \(line 1\)"):
        load_questions(file({"question": "Who?", "answer": "Nobody"}), TOKENIZER)


@pytest.mark.parametrize(
    "row",
    [
        "nonsense",
        "[1]",
        '{"question": "Who?", "answer": "5"}',
        {"question": " ", "answer": "5"},
        {"question": "Who?", "answer": 5},
        {"question": "Who?", "answer": "5", "start": -1},
        {"question": "Who?", "answer": "5", "start": "3"},
        {"question": "Who?", "answer": "5", "start": True},
    ],
)
def test_a_line_of_another_form_is_named(file, row):
    with pytest.raises(QuestionError, match="line 2: not a JSON object"):
        load_questions(file({"question": "How many boats?", "answer": "5"}, row), TOKENIZER)


def test_files_that_are_none(file, tmp_path):
    with pytest.raises(QuestionError, match="no questions"):
        load_questions(file(""), TOKENIZER)
    with pytest.raises(QuestionError, match="cannot be read"):
        load_questions(tmp_path / "nowhere", TOKENIZER)
    with pytest.raises(BookError, match="no such file"):
        load_questions(file({"book": "nowhere.txt", "question": "Who?", "answer": "5"}), TOKENIZER)


def test_long_books_are_cut_between_answers(file, tmp_path):
    numbers = [f"{n} {n + 1} {n + 2}" for n in range(1000, 1300, 3)]
    (tmp_path / "books" / "lake.txt").write_text(". ".join(numbers), encoding="utf-8")
    path = file(*({"question": f"Where is {n}?", "answer": n} for n in numbers))
    whole, _ = load_questions(path, TOKENIZER)
    pieces = cut(whole, 50)
    sizes = np.diff(pieces.offsets)
    assert sizes.sum() == len(whole.ids)
    assert sizes.max() <= 50
    assert sizes.min() > 50 - 24 or sizes[-1] == sizes.min()
    assert len(pieces.questions) == len(numbers)
    for row, number in enumerate(numbers):
        assert 0 <= pieces.gold[row, 0, 0] <= pieces.gold[row, 0, 1] < sizes[pieces.article[row]]
        assert spelled(pieces, row).removeprefix(".").strip() == number
    assert np.array_equal(cut(whole, len(whole.ids)).offsets, whole.offsets)
