"""The example book's questions point at passages that are there."""

import json
from pathlib import Path

import pytest

from mamba_ssm.text import read_pieces

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTIONS = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def book() -> str:
    return "".join(piece.text for piece in read_pieces(EXAMPLES / "abs-guide.md"))


def test_there_are_ten_questions() -> None:
    assert len({question["question"] for question in QUESTIONS}) == 10


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["question"])
def test_passage_is_at_its_offset_and_holds_the_answers(book: str, question: dict) -> None:
    start, passage = question["start"], question["passage"]
    assert book[start : start + len(passage)] == passage
    assert question["answers"]
    assert all(answer in passage and len(answer.split()) <= 8 for answer in question["answers"])


def test_sections_are_the_chapters() -> None:
    sections = {piece.section for piece in read_pieces(EXAMPLES / "abs-guide.md")}
    assert {
        "Chapter 3. Special Characters",
        "16.8. Math Commands",
        "Appendix E. Exit Codes With Special Meanings",
    } <= sections
    assert not any(section and section.startswith("!/bin") for section in sections)  # shell comments are no headings
