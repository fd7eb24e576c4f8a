"""Questions that follow one another."""

import pytest

from mamba_ssm.book import Engine, open_book, read
from mamba_ssm.book.conversation import Conversation, leaves_out
from mamba_ssm.errors import QuestionError

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"


@pytest.fixture(scope="module")
def book(tiny_model, book_path):
    with read(book_path, Engine.load(tiny_model), progress=False) as book:
        yield book


@pytest.mark.parametrize(
    "question",
    [
        "And when was it built?",
        "When was it built?",
        "Who designed their flags?",
        "But why?",
        "What about the roof?",
        "Why?",
        "What does HE say?",
    ],
)
def test_questions_that_need_the_one_before(question):
    assert leaves_out(question)


@pytest.mark.parametrize(
    "question",
    [
        "When was the Eiffel Tower built?",
        "How long must a proposed law lie open before it is passed?",
        "Which gardener planted trees near Zürich?",
        "Does Android run on tablets?",
    ],
)
def test_questions_that_stand_alone(question):
    assert not leaves_out(question)


def test_what_is_left_out_is_the_last_question_that_stood_alone(book):
    conversation = Conversation([book])
    asked = [
        "And why?",
        QUESTION,
        "And when did he do it?",
        "Why?",
        "Which gardener planted roses in chapter 2?",
        "Why?",
    ]
    for question in asked:
        list(conversation.ask_each(question))
    assert [turn.question for turn in conversation.turns] == asked
    assert [turn.context for turn in conversation.turns] == ["", "", QUESTION, QUESTION, "", asked[4]]


def test_the_context_is_searched_for_and_not_read(book):
    """What is found is what both questions find together; the passages' order is by the question alone."""
    alone, both = book.ask("Why?", passages=32), book.ask(f"Why? {QUESTION}", passages=32)
    followed = book.ask("Why?", context=QUESTION, passages=32)
    assert {p.start for p in followed.evidence} == {p.start for p in both.evidence} != {p.start for p in alone.evidence}
    shared = {p.start: p.score for p in followed.evidence}
    assert shared != {p.start: p.score for p in both.evidence}
    assert followed.question == "Why?"


def test_a_question_that_cannot_be_asked_is_no_turn(book):
    conversation = Conversation([book])
    with pytest.raises(QuestionError):
        list(conversation.ask_each("word " * 2000))
    assert conversation.turns == []


def test_the_book_with_the_best_passage_comes_first(book, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("Nothing here is about gardeners. " * 40)
    other = open_book(path, book.engine)
    for books in ([book, other], [other, book]):
        conversation = Conversation(books)
        answers = list(conversation.ask_each(QUESTION))
        assert [answer.book for answer in answers] == [b.info for b in books]
        best, second = conversation.turns[0].answers
        assert best.evidence[0].score >= second.evidence[0].score


def test_the_history_as_markdown_cites_its_passages(book, book_text):
    conversation = Conversation([book])
    (answer,) = conversation.ask_each(QUESTION, passages=3)
    list(conversation.ask_each("And who *else*?", passages=1))
    text = conversation.markdown()
    assert text.startswith(f"## {QUESTION}\n")
    assert r"## And who \*else\*?" in text
    assert f"Searched with: {QUESTION}" in text
    assert text.count("\n    > ") == 4
    for number, passage in enumerate(answer.evidence, 1):
        assert (
            f"{number}. {answer.book.path} · {passage.section} · characters {passage.start:,}–{passage.end:,}" in text
        )
    if answer.source is not None:
        cited = answer.evidence[answer.source]
        assert answer.text in cited.text
        assert f"[{answer.source + 1}]" in text


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 10), (100, 200), (8000, 21000), (20_000, 10**9), (5, 5)])
def test_any_part_of_a_books_text(book, book_path, book_text, start, end):
    assert book.text(start, end) == open_book(book_path, book.engine).text(start, end) == book_text[start:end]
