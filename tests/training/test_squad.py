"""SQuAD files to articles, and the rule that picks the development articles."""

import json
from pathlib import Path

import pytest

from mamba_ssm.errors import MambaESIError
from mamba_ssm.training.squad import Article, Paragraph, article_text, development_titles, load_squad, training_articles

DATA = Path(__file__).parents[2] / "data" / "squad"


def many(count: int) -> list[Article]:
    return [Article(f"Title {i}", [Paragraph(f"Text {i}.", [])]) for i in range(count)]


def test_a_file_is_read_in_order_with_every_answer(tmp_path: Path) -> None:
    answers = [{"answer_start": 9, "text": "Überlin"}, {"answer_start": 9, "text": "Überlingen"}]
    qas = [{"id": "q1", "question": "Where?", "answers": answers}]
    paragraphs = [{"context": "It is in Überlingen.", "qas": qas}, {"context": "No more.", "qas": []}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "A_town", "paragraphs": paragraphs}]}))
    (article,) = load_squad(path)
    assert article.title == "A_town"
    assert [p.text for p in article.paragraphs] == ["It is in Überlingen.", "No more."]
    (question,) = article.paragraphs[0].questions
    assert (question.id, question.text) == ("q1", "Where?")
    for start, text in question.answers:
        assert article.paragraphs[0].text[start : start + len(text)] == text


@pytest.mark.parametrize("content", [None, "", "[]", '{"data": [{"title": "no paragraphs"}]}'])
def test_a_missing_or_foreign_file_says_what_to_do(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "squad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MambaESIError, match=r"squad\.json.*fetch_data"):
        load_squad(path)


def test_development_articles_depend_on_titles_alone() -> None:
    articles = many(100)
    chosen = development_titles(articles)
    assert len(chosen) == 40
    assert development_titles(articles[::-1]) == chosen
    assert {a.title for a in training_articles(articles)} == {a.title for a in articles} - chosen


def test_paragraph_starts_point_at_paragraphs() -> None:
    article = Article("T", [Paragraph(text, []) for text in ("First.", "", "Third é.")])
    text, starts = article_text(article)
    assert text == "First.\n\n\n\nThird é."
    for paragraph, start in zip(article.paragraphs, starts, strict=True):
        assert text[start : start + len(paragraph.text)] == paragraph.text


@pytest.mark.skipif(not DATA.is_dir(), reason="no data/: run scripts/fetch_data.py")
def test_the_real_files() -> None:
    train, dev = (load_squad(DATA / f"{name}-v1.1.json") for name in ("train", "dev"))
    assert (len(train), len(dev)) == (442, 48)
    assert sum(len(p.questions) for a in train for p in a.paragraphs) == 87_599
    assert sum(len(p.questions) for a in dev for p in a.paragraphs) == 10_570
    assert len(training_articles(train)) == 402
    for p in (p for a in train for p in a.paragraphs):
        assert all(p.text[start : start + len(text)] == text for q in p.questions for start, text in q.answers)
