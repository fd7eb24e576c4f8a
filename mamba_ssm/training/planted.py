"""Facts planted into real text: a sentence that says a code or a name, and the question that asks for it.

They teach the search and the reader what encyclopedia questions do not: answers that no knowledge of the world gives.
"""

from __future__ import annotations

import random
from dataclasses import replace

from mamba_ssm.training.squad import Article, Question

NOUNS = (
    "passkey",
    "pass key",
    "password",
    "secret code",
    "access code",
    "magic number",
    "door code",
    "locker number",
    "pin",
    "serial number",
    "invoice number",
    "telephone extension",
    "reference number",
    "combination",
    "batch number",
    "code word",
)
SYLLABLES = (
    "ba",
    "cor",
    "del",
    "fen",
    "gra",
    "hol",
    "ira",
    "jon",
    "kel",
    "lun",
    "mar",
    "nor",
    "oss",
    "per",
    "quin",
    "ros",
    "sten",
    "tor",
    "ul",
    "ver",
    "wick",
    "yan",
    "zor",
)
PLACES = (
    "",
    "",
    "the town of ",
    "Doctor ",
    "Mrs. ",
    "project ",
    "Captain ",
    "the house of ",
    "the archive of ",
    "Port ",
)
STATEMENTS = (
    "The {thing} is {value}.",
    "The {thing} is {value}. Remember it.",
    "Note that the {thing} is {value}.",
    "Keep in mind: the {thing} is {value}.",
    "{value} is the {thing}.",
    "For the record, the {thing} was set to {value}.",
    "One more thing: the {thing} has been changed to {value}.",
)
QUESTIONS = ("What is the {thing}?", "Which {thing} does the text give?", "Tell me the {thing}.", "what is the {thing}")


def planted_fact(rng: random.Random, value: str) -> tuple[str, str]:
    """(sentence, question) about a thing whose value is ``value``."""
    thing = rng.choice(NOUNS)
    if rng.random() < 0.9:  # a name of its own, for the same bare thing in several books would have several answers
        name = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()
        thing += f" of {rng.choice(PLACES)}{name}"
    return rng.choice(STATEMENTS).format(thing=thing, value=value), rng.choice(QUESTIONS).format(thing=thing)


def plant(article: Article, rng: random.Random, share: float) -> Article:
    """A copy of the article in which a share of the paragraphs ends with a planted fact, asked for by a question."""
    paragraphs, asked = [], set()
    for number, paragraph in enumerate(article.paragraphs):
        value = str(rng.randrange(10 ** rng.choice((4, 6, 6, 6, 8))))
        sentence, question = planted_fact(rng, value)
        if rng.random() < share and question.lower() not in asked:
            asked.add(question.lower())
            text = f"{paragraph.text} {sentence}"
            answer = (len(paragraph.text) + 1 + sentence.index(value), value)
            new = Question(f"planted-{article.title}-{number}", question, [answer])
            paragraph = replace(paragraph, text=text, questions=[*paragraph.questions, new])
        paragraphs.append(paragraph)
    return replace(article, paragraphs=paragraphs)
