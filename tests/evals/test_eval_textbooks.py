"""Textbooks made of fixtures: the gold spans are the answers, and a whole run."""

import gzip
import json
import sys

import pytest
import textbooks

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


@pytest.fixture
def folder(tmp_path):
    with gzip.open(tmp_path / "sciq.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"doc": doc}) + "\n" for doc in SCIQ)
    (tmp_path / "python_faq").mkdir()
    (tmp_path / "python_faq" / "0.html").write_text(PAGE, encoding="utf-8")
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


def test_a_run_reports_both_books_beside_bm25(tiny_model, folder, monkeypatch):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    out = folder / "out.json"
    arguments = ["textbooks.py", "--model", tiny_model, "--device", "cpu", "--data", str(folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert textbooks.main() == 0
    books = json.loads(out.read_text())["books"]
    assert {name: book["questions"] for name, book in books.items()} == {"sciq": 3, "python_faq": 2}
    assert books["sciq"]["recall"]["@32"]["value"] == 1.0  # the book is a passage or two
