"""The unit that every reader of books yields, and the rules that all of them share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARS = 32_768  # small enough that a progress bar moves, large enough that per-piece costs vanish
TITLE_CHARS = 200


@dataclass(frozen=True)
class Piece:
    """Some consecutive text of a book, all of it on one page and in one section."""

    text: str
    page: int | None = None  # counted from 1; only a PDF's pages are
    section: str | None = None  # the nearest heading before the text, or the chapter's title
    label: str | None = None  # what the book itself calls the page ("xii", "187"), where it says so


def title(text: str) -> str | None:
    """A heading as one short line, or None when nothing is left of it."""
    return " ".join(text.split())[:TITLE_CHARS] or None


def pack(pieces: Iterable[Piece], size: int = PIECE_CHARS) -> Iterator[Piece]:
    """Join neighbours on the same page and in the same section, and cut so that no piece is longer than `size`."""
    held: list[str] = []
    length, place = 0, (None, None, None)  # type: int, tuple[int | None, str | None, str | None]
    for piece in pieces:
        if (here := (piece.page, piece.section, piece.label)) != place:
            if held:
                yield Piece("".join(held), *place)
            held, length, place = [], 0, here
        text = piece.text
        while length + len(text) > size:
            yield Piece("".join(held) + text[: size - length], *place)
            text, held, length = text[size - length :], [], 0
        if text:
            held.append(text)
            length += len(text)
    if held:
        yield Piece("".join(held), *place)
