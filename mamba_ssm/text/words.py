"""Whole words: where a run of tokens begins or ends inside one."""

from __future__ import annotations

from collections.abc import Callable


def whole_words(piece: Callable[[int], str], n: int, first: int, last: int) -> tuple[int, int]:
    """First and last of the tokens 0 to n - 1 that reach to the ends of the words which tokens first to last begin and
    end in. ``piece``: a token's text.
    """
    while first > 0 and _joined(piece(first - 1), piece(first)):
        first -= 1
    while last + 1 < n and _joined(piece(last), piece(last + 1)):
        last += 1
    return first, last


def _joined(one: str, other: str) -> bool:
    return _in_word(one[-1:]) and _in_word(other[:1])


def _in_word(character: str) -> bool:
    """A digit, or a letter of a script that has capitals: most others write no spaces, or other ones."""
    return character.isdigit() or character.lower() != character.upper()
