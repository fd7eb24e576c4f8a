"""Planted facts stand where they are said to, and move nothing else."""

import random
import re

import pytest

from mamba_ssm.training.planted import plant, planted_fact
from mamba_ssm.training.squad import Article, Paragraph, Question


def article(paragraphs: int = 40) -> Article:
    made = []
    for i in range(paragraphs):
        text = f"Paragraph {i} is about number {i * i}, naïvely."
        at = text.index(str(i * i), text.index("number"))
        made.append(Paragraph(text, [Question(f"q{i}", f"What is {i} about?", [(at, str(i * i))])]))
    return Article("Numbers", made)


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_stands_at_its_place(seed: int) -> None:
    before = article()
    after = plant(before, random.Random(seed), 0.5)
    planted = 0
    for old, new in zip(before.paragraphs, after.paragraphs, strict=True):
        assert new.text.startswith(old.text)
        assert new.questions[: len(old.questions)] == old.questions
        assert (new.text != old.text) == (len(new.questions) == len(old.questions) + 1)
        planted += len(new.questions) - len(old.questions)
        for question in new.questions:
            for start, text in question.answers:
                assert new.text[start : start + len(text)] == text
    assert 10 <= planted <= 30


def test_a_planted_answer_is_a_number_of_the_paragraph_s_own_sentence() -> None:
    after = plant(article(), random.Random(0), 1.0)
    for old, new in zip(article().paragraphs, after.paragraphs, strict=True):
        for question in new.questions[1:]:
            ((start, value),) = question.answers
            assert start > len(old.text)
            assert value.isdigit()


def test_a_question_is_asked_once_and_ids_differ() -> None:
    after = plant(article(300), random.Random(0), 1.0)
    asked = [q.text.lower() for p in after.paragraphs for q in p.questions[1:]]
    ids = [q.id for p in after.paragraphs for q in p.questions]
    assert len(asked) == len(set(asked))
    assert len(ids) == len(set(ids))


def test_the_original_is_left_as_it_was() -> None:
    before = article()
    assert plant(before, random.Random(0), 0.0) == before
    plant(before, random.Random(0), 1.0)
    assert before == article()


def test_sentence_and_question_name_the_same_thing() -> None:
    rng = random.Random(0)
    for _ in range(200):
        sentence, question = planted_fact(rng, "482913")
        assert "482913" in sentence
        assert "482913" not in question
        thing = re.fullmatch(r"(?:[Ww]hat is the|Tell me the|Which) (.+?)(?: does the text give)?[?.]?", question)
        assert thing is not None
        assert f"the {thing[1]}" in sentence[0].lower() + sentence[1:]
