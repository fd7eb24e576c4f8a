"""What counts as a hit, and that a whole run gives it."""

import json
import sys

import pytest
import squad

from mamba_ssm.training.squad import Article, Paragraph, Question


@pytest.fixture
def articles():
    def article(title, *facts):
        paragraphs = []
        for number, (before, answer, after) in enumerate(facts):
            asked = Question(f"{title}{number}", f"What is in {title} {number}?", [(len(before), answer)])
            paragraphs.append(Paragraph(before + answer + after, [asked]))
        return Article(title, paragraphs)

    return [
        article("Ä", ("Zürich has a ", "lake", ". 🌱"), ("The other ", "lake", " is far.")),
        article("B", ("A ", "volcano", " stands there.")),
    ]


def test_gold_spans_are_the_answers_of_the_right_paragraph_in_the_joined_book(articles):
    asked = list(squad.questions_of(articles))
    texts = [squad.article_text(article)[0] for article in articles]
    book, starts = squad.join(texts)
    said = [[book[a:b] for a, b in question.moved(starts[question.article])] for question in asked]
    assert said == [["lake"], ["lake"], ["volcano"]]
    assert asked[0].gold != asked[1].gold


def test_a_hit_holds_a_whole_gold_span():
    gold = [(100, 104), (200, 210)]
    assert squad.first_hit([(0, 103), (101, 300)], [gold[0]]) is None
    assert squad.first_hit([(0, 103), (100, 104)], [gold[0]]) == 2
    assert squad.first_hit([(150, 210), (90, 110)], gold) == 1
    assert squad.first_hit([], gold) is None


def test_recall_counts_ranks_up_to_k():
    found = squad.recalls([1, 8, 9, None], target=0.9)
    assert [found[f"@{k}"]["value"] for k in squad.KS] == [0.25, 0.5, 0.75]
    assert found["@8"]["reached"] is False


@pytest.mark.parametrize("words", [1, 24, 48, 49, 100])
def test_word_windows_cover_every_word_and_are_no_longer_than_said(words):
    text = "\n".join(f"w{i}" for i in range(words))
    windows = squad.word_windows(text)
    parts = [text[a:b].split() for a, b in windows]
    assert {word for part in parts for word in part} == set(text.split())
    assert max(map(len, parts)) <= squad.BM25_WORDS


def test_bm25_finds_the_paragraph_that_says_the_rare_word(articles):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    filler = " ".join(f"filler{i}" for i in range(200))
    text = f"{filler} the volcanoes of Iceland {filler}"
    at = text.index("volcanoes")
    assert squad.bm25(text, ["Which volcano is there?"], [[(at, at + 9)]]) == [1]


def test_a_run_reports_books_of_all_sizes_from_the_public_path(tiny_model, tmp_path, monkeypatch, articles, capsys):
    data = [
        {
            "title": article.title,
            "paragraphs": [
                {
                    "context": p.text,
                    "qas": [
                        {
                            "id": q.id,
                            "question": q.text,
                            "answers": [{"answer_start": a, "text": t} for a, t in q.answers],
                        }
                        for q in p.questions
                    ],
                }
                for p in article.paragraphs
            ],
        }
        for article in articles
    ]
    (tmp_path / "train-v1.1.json").write_text(json.dumps({"data": data}))
    out = tmp_path / "squad.json"
    arguments = ["squad.py", "--model", tiny_model, "--device", "cpu", "--data", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert squad.main() == 0
    result = json.loads(out.read_text())
    for book in result["books"].values():
        assert book["questions"] == 3
        assert book["recall"]["@8"]["value"] == 1.0  # each book is a passage or two
        assert "f1_over_no_esi_f1" in book
    answers = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert len(answers) == 9
    assert all("answer" in row["plain"] for row in answers)
