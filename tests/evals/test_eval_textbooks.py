"""Textbooks made of fixtures: the gold spans are the answers, and a whole run. And the questions as they are asked."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import textbooks

from mamba_ssm.training.heldout import fingerprints, read_fingerprints

TESTS = Path(__file__).parents[1]
HELD_OUT = TESTS.parent / "data" / "held_out"
needs_data = pytest.mark.skipif(
    not all((HELD_OUT / name).exists() for name in (*textbooks.QUOTED, "qasper.jsonl.gz")),
    reason="no data/held_out/: run scripts/fetch_data.py --held-out",
)

SUPPORT = "Light feeds plants. Rocks not."
SCIQ = [
    {"index": 0, "question": "What eats light?", "correct_answer": "Plants", "support": SUPPORT},
    {"index": 0, "question": "What eats light?", "correct_answer": "Plants", "support": SUPPORT},
    {"index": 1, "question": "What is not fed?", "correct_answer": "rocks", "support": SUPPORT},
    {"index": 2, "question": "Who knows?", "correct_answer": "nobody", "support": ""},
    {"index": 3, "question": "What is heavy?", "correct_answer": "lead metal", "support": "Lead is heavy."},
    {"index": 4, "question": "What is warm?", "correct_answer": "the sun", "support": "It is the sun."},
]
PAGE = """<body><section><h2>General</h2><section><h3>What is it?<a class="headerlink">¶</a></h3><p>A snake,
of course.</p></section><section><h3>Not a question</h3><p>Left out.</p></section><section><h3>Why?</h3><p>Because
of Zürich.</p></section></section></body>"""

CHAPTER = "<body><h1>Chapter {0}</h1><p>Tool {0} cuts <code>wood</code> \u2013 it is sharp.</p></body>"
QUESTIONS = [
    {"question": "What cuts late in the book?", "answer": "tool 10", "quotes": ["Tool 10 cuts wood"]},
    {"question": "What cuts at all?", "answer": "tools", "quotes": ["Tool 2 cuts wood", "Tool 9 cuts"]},
]
PAPER = {
    "title": "Apples",
    "abstract": "We weigh apples.",
    "full_text": {
        "section_name": ["Method", "Results"],
        "paragraphs": [["A scale is used.", "Twice a day."], ["They are heavy."]],
    },
}
QASPER = [
    {"question_id": "a", "question": "Is a scale used?", "evidence": ["A scale is used.", "FLOAT SELECTED: Table 1"]},
    {"question_id": "a", "question": "Is a scale used?", "evidence": ["A scale is used.", "FLOAT SELECTED: Table 1"]},
    {"question_id": "b", "question": "Is there a table?", "evidence": ["FLOAT SELECTED: Table 1"]},
    {"question_id": "c", "question": "Do they weigh apples?", "evidence": ["We weigh apples.", "They are heavy."]},
]


def write_requests(path, docs):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"doc": doc}) + "\n" for doc in docs)


@pytest.fixture
def folder(tmp_path):
    write_requests(tmp_path / "sciq.jsonl.gz", SCIQ)
    write_requests(tmp_path / "qasper.jsonl.gz", [PAPER | doc for doc in QASPER])
    (tmp_path / "python_faq").mkdir()
    (tmp_path / "python_faq" / "0.html").write_text(PAGE, encoding="utf-8")
    for name in textbooks.QUOTED:
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.html").write_text(CHAPTER.format(number), encoding="utf-8")
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    return tmp_path


def test_sciq_keeps_questions_whose_paragraph_says_the_answer_and_each_paragraph_once(folder):
    book = textbooks.sciq(folder / "sciq.jsonl.gz")
    assert book.questions == ["What eats light?", "What is not fed?", "What is warm?"]
    assert [[book.text[a:b] for a, b in gold] for gold in book.gold] == [["plants"], ["Rocks"], ["the sun"]]
    assert book.text.count("Light feeds") == 1


def test_the_faq_has_answers_without_their_questions(folder):
    book = textbooks.python_faq(folder / "python_faq")
    assert book.questions == ["What is it?", "Why?"]
    said = [" ".join(book.text[a:b].split()) for ((a, b),) in book.gold]
    assert said == ["A snake, of course.", "Because of Zürich."]
    assert "What is it" not in book.text
    assert "Left out." in book.text


def test_a_passage_hits_the_section_that_its_middle_lies_in():
    assert textbooks.first_inside([(0, 10), (4, 12)], [(6, 20)]) == 2
    assert textbooks.first_inside([(0, 10)], [(6, 20)]) is None


def test_a_passage_hits_a_quote_that_it_holds_half_of():
    assert textbooks.first_half([(0, 14), (0, 15), (10, 20)], [(10, 20)]) == 2
    assert textbooks.first_half([(16, 40)], [(10, 20)]) is None
    assert textbooks.first_half([(16, 40)], [(10, 20), (30, 40)]) == 1


def test_chapters_follow_one_another_and_every_quote_is_found(folder):
    book = textbooks.quoted(folder / "rust_book", folder / "rust_book.jsonl")
    assert book.questions == [row["question"] for row in QUESTIONS]
    assert [[book.text[a:b] for a, b in gold] for gold in book.gold] == [row["quotes"] for row in QUESTIONS]
    assert book.text.index("Chapter 2") < book.text.index("Chapter 10")


@pytest.mark.parametrize("quote", ["Tool 1", "nowhere in the book"])
def test_a_quote_that_is_not_in_the_book_once_is_an_error(folder, quote):
    questions = folder / "q.jsonl"
    questions.write_text(json.dumps(QUESTIONS[0] | {"quotes": ["Tool 10 cuts wood", quote]}), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"What cuts late in the book.* fetch"):
        textbooks.quoted(folder / "rust_book", questions)


def test_a_paper_is_a_book_with_the_questions_that_its_text_answers(folder):
    (paper,) = textbooks.qasper(folder / "qasper.jsonl.gz")
    assert paper.questions == ["Is a scale used?", "Do they weigh apples?"]
    evidence = [[paper.text[a:b] for a, b in gold] for gold in paper.gold]
    assert evidence == [["A scale is used."], ["We weigh apples.", "They are heavy."]]
    assert paper.text.split(textbooks.BREAK)[-2:] == ["Results", "They are heavy."]


@pytest.mark.parametrize("name", textbooks.QUOTED)
def test_the_questions_are_fifty_and_their_quotes_short(name):
    rows = [json.loads(line) for line in (textbooks.QUESTIONS / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == 50
    for row in rows:
        assert row.keys() == {"question", "answer", "quotes"}
        assert row["question"].endswith("?")
        assert row["answer"]
        assert row["quotes"]
        assert all(20 <= len(quote) <= 200 and "\n" not in quote for quote in row["quotes"])


@needs_data
@pytest.mark.parametrize("name", textbooks.QUOTED)
def test_every_quote_is_in_its_book_once_and_all_parts_are_asked_about(name):
    book = textbooks.quoted(HELD_OUT / name, textbooks.QUESTIONS / f"{name}.jsonl")
    tenths = {10 * start // len(book.text) for gold in book.gold for start, _ in gold}
    assert tenths == set(range(10))


@needs_data
def test_what_is_asked_about_is_guarded_by_fingerprints():
    guarded = read_fingerprints(TESTS / "training" / "heldout_fingerprints.json.gz")
    papers = textbooks.qasper(HELD_OUT / "qasper.jsonl.gz")
    books = {paper.text.split(textbooks.BREAK)[0]: paper.text for paper in papers}
    found = fingerprints([], books)
    assert found.titles <= guarded.titles
    for name in textbooks.QUOTED:
        pages = [page.read_text(encoding="utf-8") for page in (HELD_OUT / name).glob("*.html")]
        found.paragraphs.update(
            fingerprints([], {"": textbooks.BREAK.join(map(textbooks.plain_text, pages))}).paragraphs
        )
    assert len(found.paragraphs) > 15_000
    assert found.paragraphs <= guarded.paragraphs


def test_a_run_reports_all_books_beside_bm25(tiny_model, folder, monkeypatch):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    out = folder / "out.json"
    arguments = ["textbooks.py", "--model", tiny_model, "--device", "cpu", "--data", str(folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(textbooks, "QUESTIONS", folder)
    assert textbooks.main() == 0
    books = json.loads(out.read_text())["books"]
    asked = {"sciq": 3, "python_faq": 2, "debian_handbook": 2, "rust_book": 2, "qasper": 2}
    assert {name: book["questions"] for name, book in books.items()} == asked
    for name in ("sciq", *textbooks.QUOTED):
        assert books[name]["recall"]["@32"]["value"] == 1.0, name  # a book is a few passages
