"""Words, names and values that are drawn with a seed, and never twice; the test's names are never drawn in training."""

from __future__ import annotations

import random
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from string import ascii_uppercase
from typing import Literal, TypeVar

T = TypeVar("T")
Split = Literal["train", "test"]

_ONSETS, _VOWELS, _CODAS = (
    text.split(",")
    for text in (
        "b,c,d,f,g,h,k,l,m,n,p,r,s,t,v,br,cl,dr,fr,gl,kr,pl,st,tr,th",
        "a,e,i,o,u,ae,ei,io,ou",
        ",,,,,,,,l,m,n,r,s,t,ck,ld,ll,nd,nt,rd,rk,sk,st,x",
    )
)
ADJECTIVES = """
    amber ancient bitter blue bright broken calm careful clever cold crooked curious deep dusty early empty
    faint final gentle golden green grey heavy hidden hollow humble late little lonely mellow narrow nimble
    northern odd patient plain polite proud quiet rapid red restless rough round rusty secret sharp shy silent
    silver slow small smooth solid spare steady stern strange sudden sweet tall thin warm weary white wild
    wooden young
"""
NOUNS = """
    anchor apple arrow basket beacon bell bridge bucket candle canyon cellar chapel circle cloud comet compass
    copper corner cradle crown desert drum engine falcon feather fern field flame forest fountain garden gate
    glacier harbour hammer harvest hill island kettle ladder lamp lantern leaf ledger marble meadow mirror
    mountain needle ocean orchard paper pebble pepper pillar planet pocket pond river saddle sail shadow shelf
    spring stone storm thimble thunder tower tunnel valley velvet violin wagon walnut whistle window winter wolf
"""


def split_of(word: str) -> Split:
    """A quarter of all words are the test's: a rule that no seed and no order can change."""
    return "test" if zlib.crc32(word.encode()) % 4 == 0 else "train"


@cache
def of_split(text: str, split: Split) -> tuple[str, ...]:
    """The words of a list that are the split's."""
    return tuple(word for word in text.split() if split_of(word) == split)


class Words:
    """A source of words for one haystack or more: no name, key or value comes twice, or is one of ``taken``."""

    def __init__(self, rng: random.Random, split: Split, taken: Iterable[str] = ()) -> None:
        self.rng, self.split, self.taken = rng, split, set(taken)

    def once(self, make: Callable[[], str]) -> str:
        """The first of ``make`` that was not given yet."""
        word = next(word for word in iter(make, None) if word not in self.taken)
        self.taken.add(word)
        return word

    def _new(self, make: Callable[[], str]) -> str:
        """The same, among the words of the split."""
        return self.once(lambda: next(word for word in iter(make, None) if split_of(word) == self.split))

    def choose(self, train: Sequence[T], test: Sequence[T], more: Sequence[T] = ()) -> T:
        """One of the training's; in the test also one of those held out, and none of ``more``."""
        return self.rng.choice([*train, *(test if self.split == "test" else more)])

    def name(self) -> str:
        """A made-up name, capitalised, of the split."""
        return self._new(lambda: self._made_up().capitalize())

    def _made_up(self) -> str:
        syllables = range(self.rng.choice((2, 2, 2, 3)))
        return "".join(self.rng.choice(part) for _ in syllables for part in (_ONSETS, _VOWELS, _CODAS))

    def key(self) -> str:
        """What a value belongs to: a name, or a noun of the split beside one."""
        noun, adjective = (self.rng.choice(of_split(words, self.split)) for words in (NOUNS, ADJECTIVES))
        form = self.rng.choice(("{name}", "the {noun} of {name}", "the {adjective} {noun} of {name}", "{noun}-{name}"))
        return form.format(name=self.name(), noun=noun, adjective=adjective)

    def variable(self) -> str:
        """Five capital letters, of the split."""
        return self._new(lambda: "".join(self.rng.choices(ascii_uppercase, k=5)))

    def number(self) -> str:
        """Four to eight digits."""
        digits = self.rng.randint(4, 8)
        return self.once(lambda: str(self.rng.randrange(10 ** (digits - 1), 10**digits)))

    def word(self) -> str:
        """A made-up word, or an adjective and a noun."""
        return self.once(lambda: self.rng.choice((self._made_up(), f"{self._any(ADJECTIVES)}-{self._any(NOUNS)}")))

    def _any(self, text: str) -> str:
        return self.rng.choice(text.split())

    def uuid(self) -> str:
        return self.once(lambda: str(uuid.UUID(int=self.rng.getrandbits(128), version=4)))
