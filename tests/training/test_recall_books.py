"""Books of the recall tasks: what is marked as gold is what the questions ask for."""

import numpy as np
import pytest

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.recall.books import GOLD, IN_A_BOOK, MAX_QUESTION, TOKENS, recall_books
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.recall.words import split_of


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def fillers(tokenizer):
    return [Filler.noise(tokenizer)]


@pytest.fixture(scope="module")
def books(tokenizer, fillers):
    return recall_books(3, fillers, tokenizer, seed=0)


def test_every_book_has_every_task_and_its_length(books):
    assert np.diff(books.offsets).tolist() == [TOKENS] * 3
    assert len(books.ids) == 3 * TOKENS
    assert np.bincount(books.article).tolist() == [sum(IN_A_BOOK.values())] * 3
    assert books.questions.shape[1] == MAX_QUESTION


def test_the_gold_of_a_single_number_is_the_number_beside_its_key(books, tokenizer):
    places = np.cumsum([0, *IN_A_BOOK.values()])
    start = places[list(IN_A_BOOK).index("single_number")]
    for row in range(start, start + IN_A_BOOK["single_number"]):
        (first, last), *others = books.gold[row].tolist()
        text = books.text(books.article[row])
        assert tokenizer.decode(text[first : last + 1].tolist()).strip().isdigit()
        assert others == [[-1, -1]] * (GOLD - 1)
        question = tokenizer.decode(books.questions[row][books.questions[row] > 0].tolist())
        around = tokenizer.decode(text[max(first - 40, 0) : last + 40].tolist())
        # The key is the one made-up word that the question and the sentence share.
        shared = {word.strip("?.,:") for word in question.split()} & {word.strip("?.,:") for word in around.split()}
        assert any((word[-1:].isalpha() and word[:1].isupper()) or "-" in word for word in shared)


def test_questions_with_several_answers_have_all_of_them(books):
    counts = (books.gold[..., 0] >= 0).sum(1)
    tasks = np.tile(np.repeat(list(IN_A_BOOK), list(IN_A_BOOK.values())), 3)
    assert (counts[(tasks == "multi_value") | (tasks == "multi_query")] == 4).all()
    assert set(counts[tasks == "variables_so_far"]) <= set(range(1, GOLD + 1))
    assert (counts[tasks != "variables_so_far"] >= 1).all()


def test_the_same_seed_gives_the_same_books_and_another_does_not(tokenizer, fillers, books):
    again = recall_books(3, fillers, tokenizer, seed=0)
    assert np.array_equal(again.ids, books.ids)
    assert np.array_equal(again.gold, books.gold)
    assert not np.array_equal(recall_books(3, fillers, tokenizer, seed=1).ids, books.ids)


def test_no_name_of_the_test_is_in_a_training_book(books, tokenizer):
    names = {word.strip(".,:?") for word in tokenizer.decode(books.text(0).tolist()).split() if word[:1].isupper()}
    made_up = {name for name in names if name.isalpha() and len(name) > 8 and name.lower() != name}
    assert made_up
    asked = tokenizer.decode(books.questions[books.article == 0].flatten().tolist())
    assert all(split_of(name) == "train" for name in made_up if name in asked)
