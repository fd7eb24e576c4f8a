"""Where persons and things are, after the first three tasks of bAbI (Weston et al. 2015, arXiv 1502.05698)."""

from __future__ import annotations

from dataclasses import dataclass, field

from mamba_ssm.training.recall.example import Example, Piece
from mamba_ssm.training.recall.words import Words, of_split

PERSONS = """
    Adele Agnes Albert Anton Bertha Bruno Carla Clara Conrad Dora Edgar Elsa Emil Erich Flora Fritz Gerda Gustav
    Hanna Hector Helga Hugo Ida Ivan Jonas Julia Karl Klara Leon Lotte Luise Magda Max Nora Oscar Otto Paula
    Rosa Rudolf Thea Theo Ursula Victor Walter Wilma
"""
PLACES = """
    attic bakery balcony barn basement bathroom bedroom cabin canteen cave cellar church courtyard dining-hall
    gallery garage garden greenhouse gym hallway harbour kitchen laboratory larder laundry library lobby mill
    museum nursery office orchard pantry park pharmacy playground school shed stable station studio theatre
    tower vault workshop
"""
THINGS = """
    axe ball basket bell blanket book bottle bowl broom brush bucket candle carpet chessboard clock coat coin
    comb cup dictionary drum envelope fan flute glove hammer hat helmet jar kettle key kite ladle lamp letter
    map medal mirror mug needle newspaper parcel pencil pillow plate puzzle racket ring rope ruler saw scarf
    spoon torch umbrella vase
"""
GOES = ("{person} went to the {place}.", "{person} walked to the {place}.", "{person} moved to the {place}.")
TEST_GOES = ("{person} hurried to the {place}.",)
TAKES = ("{person} took the {thing}.", "{person} picked up the {thing}.", "{person} grabbed the {thing}.")
TEST_TAKES = ("{person} got hold of the {thing}.",)
DROPS = ("{person} put down the {thing}.", "{person} dropped the {thing}.", "{person} left the {thing} there.")
TEST_DROPS = ("{person} let go of the {thing}.",)

EVENTS = 16


@dataclass
class _World:
    """What was said so far, and where all is, each with the events that tell so."""

    said: list[tuple[str, str | None]] = field(default_factory=list)
    at: dict[str, tuple[str, int]] = field(default_factory=dict)
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    places: dict[str, list[tuple[str, set[int]]]] = field(default_factory=dict)

    def goes(self, person: str, place: str, text: str) -> None:
        event = len(self.said)
        self.said.append((text.format(person=person, place=place), place))
        self.at[person] = place, event
        for thing, (holder, taken) in self.held.items():
            if holder == person:
                self.places[thing].append((place, {taken, event}))

    def takes(self, person: str, thing: str, text: str) -> None:
        place, came = self.at[person]
        event = len(self.said)
        self.said.append((text.format(person=person, thing=thing), None))
        self.held[thing] = person, event
        self.places.setdefault(thing, [(place, set())])[-1] = place, {came, event}

    def drops(self, person: str, thing: str, text: str) -> None:
        place, came = self.at[person]
        event = len(self.said)
        self.said.append((text.format(person=person, thing=thing), None))
        del self.held[thing]
        self.places[thing][-1] = place, {came, event}


def _world(words: Words) -> _World:
    """At random: persons go about, take what lies where they are, and drop what they hold."""
    rng, world = words.rng, _World()
    persons, places, things = (
        rng.sample(of_split(all_of, words.split), n) for all_of, n in ((PERSONS, 4), (PLACES, 6), (THINGS, 3))
    )
    lies = {thing: rng.choice(places) for thing in things}
    for person in persons:
        world.goes(person, rng.choice(places), words.choose(GOES, TEST_GOES))
    while len(world.said) < EVENTS:
        person = rng.choice(persons)
        here = world.at[person][0]
        mine = [thing for thing, (holder, _) in world.held.items() if holder == person]
        near = [thing for thing, place in lies.items() if place == here and thing not in world.held]
        if near and rng.random() < 0.7:
            world.takes(person, rng.choice(near), words.choose(TAKES, TEST_TAKES))
        elif mine and rng.random() < 0.2:
            thing = rng.choice(mine)
            world.drops(person, thing, words.choose(DROPS, TEST_DROPS))
            lies[thing] = here
        else:
            world.goes(person, rng.choice([place for place in places if place != here]), words.choose(GOES, TEST_GOES))
    return world


def _example(words: Words, world: _World, task: str, question: str, answer: str, gold: set[int]) -> Example:
    depths = sorted(words.rng.random() for _ in world.said)
    pieces = tuple(
        Piece(text, depth, answer if place == answer else None, event in gold)
        for event, ((text, place), depth) in enumerate(zip(world.said, depths, strict=True))
    )
    return Example(task, pieces, question, (answer,))


def qa1(words: Words) -> Example:
    """Where is a person? Where it went last."""
    world = _world(words)
    person = words.rng.choice(sorted(world.at))
    place, event = world.at[person]
    return _example(words, world, "qa1", f"Where is {person}?", place, {event})


def _world_with_thing(words: Words, n: int) -> tuple[_World, str]:
    """A world, and something in it that is known to have been at n places."""
    while True:
        world = _world(words)
        if things := sorted(thing for thing, places in world.places.items() if len(places) >= n):
            return world, words.rng.choice(things)


def qa2(words: Words) -> Example:
    """Where is a thing? Where the one who took it is, or dropped it."""
    world, thing = _world_with_thing(words, 1)
    place, gold = world.places[thing][-1]
    return _example(words, world, "qa2", f"Where is the {thing}?", place, gold)


def qa3(words: Words) -> Example:
    """Where was a thing before it came where it is?"""
    world, thing = _world_with_thing(words, 2)
    (before, first), (now, last) = world.places[thing][-2:]
    return _example(words, world, "qa3", f"Where was the {thing} before the {now}?", before, first | last)
