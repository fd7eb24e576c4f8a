"""Needles: sentences that say what nothing else in a text says, after RULER (Hsieh et al. 2024, arXiv 2404.06654)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mamba_ssm.training.recall import relations
from mamba_ssm.training.recall.example import Example, Piece
from mamba_ssm.training.recall.words import Words

NEEDLES = 4
MOST_TOLD = 8  # statements about a name of the training's
HOPS = 4
CHAPTERS = 12

THINGS = {
    "number": (
        "access code",
        "serial number",
        "locker number",
        "pin",
        "batch number",
        "telephone number",
        "lucky number",
    ),
    "word": ("password", "code word", "nickname", "call sign", "motto", "secret word", "safe word"),
    "uuid": ("identifier", "UUID", "licence key", "device id", "session token"),
}
STATEMENTS = (
    "The {thing} of {key} is {value}.",
    "Note that the {thing} of {key} is {value}.",
    "{value} is the {thing} of {key}.",
    "For the record, the {thing} of {key} was set to {value}.",
    "As to {key}, the {thing} is {value}.",
    "They gave {key} the {thing} {value}.",
)
MORE_STATEMENTS = (
    "The {thing} that {key} uses is {value}.",
    "{key} goes by the {thing} {value}.",
    "{thing} of {key}: {value}",
    "{key}: {thing} {value}.",
    "{key} / {thing} / {value}",
    "[{key}] {thing} = {value}",
    "- {key}, {thing} {value}",
    "Whoever turns to {key} for the {thing} hears {value}.",
    "To reach {key}, type {value} as the {thing}.",
    "Write {value} where the {thing} of {key} is wanted.",
    "The {thing} of {key}, {value}, was painted on the door.",
    "Under {thing}, the file on {key} has {value}.",
    "The register shows {value} as the {thing} of {key}.",
    "Remember {value}, the {thing} of {key}.",
    "{key} answers to the {thing} {value}.",
    '"{value}" is what {key} has for a {thing}.',
    'The {thing} of {key} reads "{value}".',
    "{key} chose {value} as a {thing}.",
    "It was then that {key} got a new {thing}, namely {value}.",
    "Use {value} ({thing} of {key}).",
    "The clerk copied the {thing} of {key} ({value}) twice.",
    "For {key} enter the {thing}, then a full stop: {value}.",
    "Please note that {thing} {value} is that of {key}.",
    "Nobody but {key} has the {thing} {value}.",
    "We know from the letters that {value} was the {thing} of {key}.",
    "When the {thing} was wanted, {key} replied {value}.",
    "Then {key} whispered the {thing}, which is {value}, and left.",
    "The {thing} given to {key} equals {value}.",
    "Those who know {key} give {value} for the {thing}.",
    "They call it {value}: the {thing} of {key}.",
    "Go to {key}, and by way of {thing} shout {value}!",
    "Ask {key} for the {thing}, and you will be told {value}.",
    "The answer to the {thing} of {key} is {value}, never anything else.",
    "{key} has had the {thing} {value} for years.",
    "With the {thing} of {key}, that is {value}, all doors open.",
    "The {thing} of {key}? It is {value}.",
    "To the guard {key} gives {value} as the {thing}.",
    "Dial {value}, the {thing} of {key}, twice.",
    "Those papers state: {thing} {value}, owner {key}.",
    "The {thing} {value} was issued to {key} last spring.",
    "You must answer {value} where the {thing} of {key} is wanted.",
    "{value}, muttered {key}, is still my {thing}.",
    "Press {value} for {key} (that is the {thing}).",
    "As {thing}, {key} took {value}.",
    "Old records name {value} as the {thing} of {key}.",
    "A note to {key}: your {thing} is now {value}, as it was last year.",
    "On the back it says {key}, {thing}, {value}, and nothing more.",
    "In all of the letters the {thing} of {key} is spelt {value}.",
    "No {thing} but {value} will do for {key}.",
)
TEST_STATEMENTS = (
    "One of the special magic {thing}s for {key} is: {value}.",
    "If anyone asks for the {thing} of {key}, say {value}.",
    "{key} ({thing}: {value}) was on the list, too.",
)
QUESTIONS = (
    "What is the {thing} of {key}?",
    "Which {thing} does {key} have?",
    "Tell me the {thing} of {key}.",
    "what {thing} is given for {key}",
)
MORE_QUESTIONS = (
    "{key}: which {thing}?",
    "Could you give me the {thing} of {key}?",
    "What is the {thing} for {key}?",
    "What {thing} was {key} given?",
    "Find the {thing} of {key} in the text.",
    "Do you know the {thing} of {key}?",
    "Say what the {thing} of {key} is.",
)
TEST_QUESTIONS = (
    "What is the special magic {thing} for {key} mentioned in the provided text?",
    "I need the {thing} that belongs to {key}.",
)
ADDITIONS = (
    "One {thing} of {key} is {value}.",
    "Another {thing} of {key} is {value}.",
    "{key} also has the {thing} {value}.",
    "Among the {thing}s of {key} is {value}.",
)
MORE_ADDITIONS = (
    "{value} is one more {thing} of {key}.",
    "{value}, too, is a {thing} of {key}.",
    "The next {thing} of {key}: {value}",
    "{key} was also given {value} as a {thing}.",
    "The list of {thing}s of {key} has {value} on it.",
    "A further {thing}, {value}, is that of {key}.",
    "{key} may use the {thing} {value} as well.",
    "Besides, {key} answers to the {thing} {value}.",
    "And there is this {thing} of {key}: {value}.",
    "Some of the {thing}s for {key} are old; this one is new: {value}.",
    "You may also try {value}, a {thing} of {key}.",
    "{key} was heard to use the {thing} {value}.",
    "Of the many {thing}s of {key} we give {value} here.",
    "The next of the {thing}s that belong to {key} reads {value}, as was said.",
)
TEST_ADDITIONS = TEST_STATEMENTS[:1]
ALL_OF_ONE = (
    "What are all the {thing}s of {key}?",
    "Name every {thing} of {key}.",
    "Which {thing}s does {key} have?",
)
MORE_ALL_OF_ONE = (
    "List the {thing}s of {key}.",
    "Which are the {thing}s of {key}?",
    "I want every {thing} that {key} has.",
    "Give all {thing}s for {key}.",
)
TEST_ALL_OF_ONE = ("What are all the special magic {thing}s for {key} mentioned in the provided text?",)
ALL_OF_MANY = (
    "What are the {thing}s of {keys}?",
    "Which {thing}s do {keys} have?",
    "Tell me the {thing}s of {keys}.",
)
MORE_ALL_OF_MANY = (
    "Give the {thing}s for {keys}.",
    "List the {thing}s of {keys}.",
    "Which {thing}s are those of {keys}?",
    "What {thing} does each of {keys} have?",
)
TEST_ALL_OF_MANY = ("What are all the special magic {thing}s for {keys} mentioned in the provided text?",)
IN_CHAPTER = (
    "In {chapter}, what is the {thing} of {key}?",
    "What is the {thing} of {key} in {chapter}?",
    "Which {thing} does {chapter} give for {key}?",
)
TEST_IN_CHAPTER = ("According to {chapter}, which {thing} does {key} have?",)
ALL_VARIABLES = (
    "Which variables have the value {value}?",
    "Name all variables that are equal to {value}.",
)
TEST_ALL_VARIABLES = ("Find all variables that are assigned the value {value} in the text above.",)
PASSKEYS = (
    ("The passkey is {value}.", "What is the passkey?"),
    ("The pass key is {value}. Remember it.", "What is the pass key?"),
    ("Keep in mind that {value} is the passkey.", "Which passkey does the text give?"),
)
TEST_PASSKEYS = (
    ("The pass key is {value}. Remember it. {value} is the pass key.", "What is the pass key? The pass key is"),
)


def statement(words: Words, kind: str, thing: str, key: str, depth: float, gold: bool = True) -> Piece:
    """A sentence that gives a thing of ``kind``, a key of THINGS, to the key."""
    return _said(words, words.choose(STATEMENTS, TEST_STATEMENTS, MORE_STATEMENTS), kind, thing, key, depth, gold)


def _said(words: Words, template: str, kind: str, thing: str, key: str, depth: float, gold: bool = True) -> Piece:
    value = getattr(words, kind)()
    text = template.format(thing=thing, key=key, value=value)
    return Piece(text if text.startswith(value) else text[0].upper() + text[1:], depth, value, gold)


def _thing(words: Words, kind: str | None = None) -> tuple[str, str]:
    kind = kind or words.rng.choice(tuple(THINGS))
    return kind, words.rng.choice(THINGS[kind])


def _question(words: Words, thing: str, key: str) -> str:
    return words.choose(QUESTIONS, TEST_QUESTIONS, MORE_QUESTIONS).format(thing=thing, key=key)


def _example(task: str, question: str, pieces: list[Piece]) -> Example:
    """Right are the answers of the gold pieces."""
    return Example(
        task, tuple(pieces), question, tuple(piece.answer for piece in pieces if piece.gold and piece.answer)
    )


def single(words: Words, kind: str | None = None) -> Example:
    """One key with one value: a word, a number or a UUID."""
    kind, thing = _thing(words, kind)
    key = words.key()
    question = _question(words, thing, key)
    return _example(f"single_{kind}", question, [statement(words, kind, thing, key, words.rng.random())])


def multi_key(words: Words) -> Example:
    """Needles with the same thing of several keys, one of which is asked for."""
    kind, thing = _thing(words)
    keys = [words.key() for _ in range(NEEDLES)]
    pieces = [statement(words, kind, thing, key, words.rng.random(), key is keys[0]) for key in keys]
    return _example("multi_key", _question(words, thing, keys[0]), pieces)


def multi_value(words: Words) -> Example:
    """Several values of one key, all asked for."""
    kind, thing = _thing(words)
    key = words.key()
    templates = [words.choose(ADDITIONS, TEST_ADDITIONS, MORE_ADDITIONS) for _ in range(NEEDLES)]
    pieces = [_said(words, template, kind, thing, key, words.rng.random()) for template in templates]
    question = words.choose(ALL_OF_ONE, TEST_ALL_OF_ONE, MORE_ALL_OF_ONE).format(thing=thing, key=key)
    return _example("multi_value", question, pieces)


def multi_query(words: Words) -> Example:
    """Several keys in one question."""
    kind, thing = _thing(words)
    keys = [words.key() for _ in range(NEEDLES)]
    pieces = [statement(words, kind, thing, key, words.rng.random()) for key in keys]
    listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
    question = words.choose(ALL_OF_MANY, TEST_ALL_OF_MANY, MORE_ALL_OF_MANY).format(thing=thing, keys=listed)
    return _example("multi_query", question, pieces)


def variables(words: Words) -> Example:
    """A chain of assignments, in order, whose every variable is asked for; another chain is there to distract."""
    pieces: list[Piece] = []
    values = [words.number(), words.number()]
    for value in values:
        given = value
        for depth in sorted(words.rng.random() for _ in range(HOPS + 1)):
            variable = words.variable()
            pieces.append(Piece(f"VAR {variable} = {given}.", depth, variable, value is values[0]))
            given = f"VAR {variable}"
    return _example("variables", words.choose(ALL_VARIABLES, TEST_ALL_VARIABLES).format(value=values[0]), pieces)


def variables_so_far(words: Words) -> Example:
    """The same where the question names some of the chain, as they are found one after the other: right are these, and
    the one that is assigned the last of them."""
    whole = variables(words)
    known = words.rng.randrange(HOPS + 1)
    pieces = tuple(replace(piece, gold=piece.answer in whole.answers[: known + 1]) for piece in whole.pieces)
    named = list(whole.answers[:known])
    words.rng.shuffle(named)
    return Example("variables_so_far", pieces, with_found(whole.question, named), whole.answers[: known + 1])


def with_found(question: str, found: Sequence[str]) -> str:
    """A question that is asked again, with what was found."""
    return " ".join([question, *found])


def chapters(words: Words) -> Example:
    """The same key with another value in every chapter; the question names the chapter.

    In training, headings differ. In the test they are the same for all, so that one haystack can serve many examples.
    """
    training = words.split == "train"
    heading = words.rng.choice(("Chapter", "Part", "Section", "Lesson")) if training else "Chapter"
    n = words.rng.randint(3, CHAPTERS) if training else CHAPTERS
    kind, thing = _thing(words)
    key, asked = words.key(), words.rng.randrange(n)
    pieces = []
    for chapter in range(n):
        pieces.append(Piece(f"{heading} {chapter + 1}", chapter / n, gold=False, heading=True))
        depth = (chapter + words.rng.uniform(0.05, 0.95)) / n
        pieces.append(statement(words, kind, thing, key, depth, chapter == asked))
    question = words.choose(IN_CHAPTER, TEST_IN_CHAPTER).format(thing=thing, key=key, chapter=f"{heading} {asked + 1}")
    return _example("chapters", question[0].upper() + question[1:], pieces)


def alias(words: Words, of: Sequence[relations.Relation] | None = None) -> Example:
    """A relation that is asked for in other words than it is stated in, among other relations of the same name.

    ``of``: the relations that are asked for; by default those of the split.
    """
    rng, name = words.rng, words.name()
    told = relations.RELATIONS if words.split == "test" else relations.TRAIN
    asked = rng.choice(of or (relations.TEST if words.split == "test" else told))
    # The more is told of a name, the less its name alone finds the answer.
    n = NEEDLES - 1 if words.split == "test" else rng.randrange(NEEDLES - 1, MOST_TOLD)
    others = rng.sample([other for other in told if other.about == asked.about and other != asked], n)
    pieces = []
    for relation in (asked, *others):
        value = _value(words, relation.value)
        text = relation.statement.format(x=name, v=value)
        pieces.append(Piece(text, rng.random(), value, relation is asked))
    return _example("alias", rng.choice(asked.questions).format(x=name), pieces)


def _value(words: Words, kind: str) -> str:
    if kind == "name":
        return words.name()
    if kind == "number":
        return words.number()
    if kind == "year":
        return str(words.rng.randrange(1100, 2000))
    return words.rng.choice(relations.VALUES[kind].split())


def passkey(words: Words) -> Example:
    """The one passkey of a text (Mohtashami & Jaggi 2023, arXiv 2305.16300)."""
    text, question = words.choose(PASSKEYS, TEST_PASSKEYS)
    value = str(words.rng.randrange(100_000, 1_000_000))
    return _example("passkey", question, [Piece(text.format(value=value), words.rng.random(), value)])


def distractors(words: Words, n: int) -> list[str]:
    """Paragraphs of needles, for a haystack that is made of nothing else."""
    sentences = [statement(words, *_thing(words), words.key(), 0.0).text for _ in range(n)]
    return [" ".join(sentences[i : i + NEEDLES]) for i in range(0, n, NEEDLES)]
