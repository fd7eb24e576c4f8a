"""What the tasks say and ask: answers that follow from the text, seeds, and a test that training never sees."""

import random
import re
from collections import Counter

import pytest

from mamba_ssm.training.recall import needles, relations, stories
from mamba_ssm.training.recall.tasks import TASKS, UNSHAREABLE
from mamba_ssm.training.recall.words import Words, of_split

SEEDS = range(30)
SPLITS = ("train", "test")
STOP = re.compile(
    r"\b(an?|the|of|for|from|in|on|to|with|by|at|who|whom|whose|what|which|when|where|how|much|many|is|was|were|are|did|do|"
    r"does|has|have|had|it|its|year|after|against|and|as|be|been|before|can|her|his|into|must|not|off|out|that|their|will|"
    r"would)\b"
)


def example(task, seed, split="test"):
    return TASKS[task](Words(random.Random(seed), split))


def every(*tasks):
    return [example(task, seed, split) for task in tasks for seed in SEEDS for split in SPLITS]


@pytest.mark.parametrize("task", TASKS)
def test_seeds_repeat_and_differ(task):
    assert example(task, 1) == example(task, 1)
    assert len({example(task, seed).pieces for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_is_a_word_of_a_gold_piece_and_pieces_lie_inside(task):
    for made in every(task):
        assert made.question
        gold = [piece for piece in made.pieces if piece.gold]
        assert {piece.answer for piece in gold if piece.answer} >= set(made.answers)
        assert all(0 <= piece.depth < 1 for piece in made.pieces)
        for piece in made.pieces:
            if piece.answer:
                start, end = piece.answer_characters
                assert piece.text[start:end] == piece.answer
                assert not re.search(r"\w$", piece.text[:start])
                assert not re.match(r"\w", piece.text[end:])


def test_counts_and_keys_are_those_of_the_tasks():
    for made in every("multi_value", "multi_query"):
        assert len(made.answers) == len(set(made.answers)) == 4
    for made in every("multi_key", "single_uuid", "chapters", "alias"):
        (answer,) = made.answers
        assert sum(answer in piece.text for piece in made.pieces) == 1
    assert all(
        re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made.answers[0]) for made in every("single_uuid")
    )


def test_variables_are_those_that_the_chain_leads_to():
    for made in every("variables"):
        values = {}
        for piece in sorted(made.pieces, key=lambda piece: piece.depth):
            name, given = re.fullmatch(r"VAR (\w+) = (?:VAR )?(\w+)\.", piece.text).groups()
            values[name] = values.get(given, given)  # what is given was said before
        asked = re.search(r"\d+", made.question)[0]
        assert {name for name, value in values.items() if value == asked} == set(made.answers)
        assert len(made.answers) == 5 < len(values)


def test_the_chapter_that_is_named_holds_the_answer():
    for made in every("chapters"):
        chapter = None
        for piece in sorted(made.pieces, key=lambda piece: piece.depth):
            chapter = piece.text if piece.heading else chapter
            assert piece.gold == (not piece.heading and bool(re.search(rf"{chapter}\b", made.question, re.IGNORECASE)))
        assert sum(piece.gold for piece in made.pieces) == 1


def replay(made):
    """An independent reading of a story: where persons are, and every place where a thing is known to have been."""
    at, holder, been = {}, {}, {}
    for piece in sorted(made.pieces, key=lambda piece: piece.depth):
        person, verb, what = re.fullmatch(r"(\w+) (.+) the ([\w-]+?)(?: there)?\.", piece.text).groups()
        if verb.endswith(" to"):
            at[person] = what
            for thing in (thing for thing, who in holder.items() if who == person):
                been[thing].append(what)
        elif verb in ("took", "picked up", "grabbed", "got hold of"):
            holder[what] = person
            if been.setdefault(what, [])[-1:] != [at[person]]:
                been[what].append(at[person])
        else:
            assert holder.pop(what) == person
    return at, been


def test_stories_follow_from_what_is_said():
    for made in every("qa1"):
        assert (replay(made)[0][re.search(r"is (\w+)", made.question)[1]],) == made.answers
    for made in every("qa2"):
        assert (replay(made)[1][re.search(r"is the (\w+)", made.question)[1]][-1],) == made.answers
    for made in every("qa3"):
        thing, now = re.search(r"was the (\w+) before the ([\w-]+)\?", made.question).groups()
        assert replay(made)[1][thing][-2:] == [made.answers[0], now]
    assert Counter(len([p for p in made.pieces if p.gold]) for made in every("qa1")) == {1: 60}
    assert all(2 <= len([p for p in made.pieces if p.gold]) <= 4 for made in every("qa3"))


def test_the_test_s_keys_and_names_are_never_drawn_in_training():
    def drawn(split):
        words = Words(random.Random(0), split)
        return {make() for make in (words.name, words.variable) for _ in range(2000)}

    train, test = drawn("train"), drawn("test")
    assert len(train) == len(test) == 4000
    assert not train & test
    for text in (stories.PERSONS, stories.PLACES, stories.THINGS):
        assert len(of_split(text, "test")) >= 6
        assert sorted([*of_split(text, "train"), *of_split(text, "test")]) == sorted(text.split())


def test_one_source_gives_nothing_twice():
    words = Words(random.Random(0), "test", taken={"1234"})
    made = [TASKS[task](words) for task in sorted(TASKS.keys() - UNSHAREABLE) for _ in range(20)]
    assert len({one.question for one in made}) == len(made)
    values = [answer for one in made if one.task != "alias" for answer in one.answers]
    assert len(set(values)) == len(values)


def test_relations_are_many_split_and_asked_in_other_words():
    assert len(relations.RELATIONS) >= 60
    assert len(relations.TEST) >= 15
    assert not {*relations.TEST, *relations.DEVELOPMENT} & {*relations.TRAIN}
    for relation in {*relations.RELATIONS, *relations.TRAIN, *relations.DEVELOPMENT}:
        assert len(set(relation.questions)) >= 2
        for question in relation.questions:
            said, asked = (set(re.findall(r"\w{2,}", STOP.sub("", t.lower()))) for t in (relation.statement, question))
            assert not said & asked, (relation.statement, question)
            assert question.count("{x}") == 1


def test_training_sees_neither_relations_nor_templates_of_the_test():
    trained = {made.question for task in TASKS for made in (example(task, seed, "train") for seed in SEEDS)}
    assert not any("special magic" in question and "provided text" in question for question in trained)
    asked = [example("alias", seed, "train") for seed in range(200)]
    held_out = [
        re.sub(r"\{\w\}", r"[\\w-]+", re.escape(r.statement).replace(r"\{", "{").replace(r"\}", "}"))
        for r in relations.TEST
    ]
    assert not any(re.fullmatch(form, piece.text) for form in held_out for made in asked for piece in made.pieces)


def test_distractors_have_keys_that_are_taken():
    words = Words(random.Random(0), "test")
    paragraphs = needles.distractors(words, 40)
    assert len(paragraphs) == 10
    assert len(words.taken) == 80
