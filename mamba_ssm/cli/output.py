"""What people see: an answer, its passages with the matched words, and where in the book they lie."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from mamba_ssm.book import Answer, Passage

CELLS = 60
_WORD = re.compile(r"\w+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]+")
_FEW = 4  # words shorter than this are mostly grammar
_GRAMMAR = {"does", "from", "have", "that", "their", "there", "they", "this", "were", "what", "when", "where", "which"}
_GRAMMAR |= {"whose", "will", "with"}


def write(text: str) -> None:
    """Exact text on standard output in UTF-8, whatever the platform makes of line ends and encodings."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def show(answer: Answer, titles: Mapping[str, str] | None = None) -> None:
    """Print an answer for people. ``titles`` are those of a shelf's books, by id."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    console.print(Text(one_line(answer.question), style="dim"))
    said = Text(one_line(answer.text) or "(no answer)", style="bold")
    doubt = "" if answer.told else "; the book does not seem to tell"
    console.print(said, Text(f"(confidence {answer.confidence:.0%}{doubt})", style="dim"))
    words = {word for word in _WORD.findall(answer.question.casefold()) if len(word) >= _FEW} - _GRAMMAR
    for number, passage in enumerate(answer.evidence, 1):
        place = [one_line(titles[passage.book])] if titles and passage.book else []
        place += [f"p. {passage.page}"] if passage.page is not None else []
        place += [one_line(passage.section)] if passage.section else []
        heading = " · ".join([*place, f"characters {passage.start:,}–{passage.end:,}", f"score {passage.score:.1f}"])
        console.print()
        console.print(Text(f"{number:>2}  "), Text(heading, style="cyan"), sep="")
        console.print(Padding(_highlight(passage, answer, words), (0, 0, 0, 4)))
    if answer.evidence and titles is None:
        console.print()
        console.print(Text("    " + book_map(answer)))


def _highlight(passage: Passage, answer: Answer, words: set[str]) -> Text:
    """The passage with the question's words underlined, and the answer where it was found."""
    from rich.text import Text

    # One space for each control character, so that positions stay: a book must not steer the terminal.
    text = Text(_CONTROL.sub(lambda match: " " * len(match[0]), passage.text))
    for match in _WORD.finditer(passage.text):
        if match[0].casefold() in words:
            text.stylize("underline", *match.span())
    if answer.start is not None and answer.end is not None:
        start, end = max(answer.start, passage.start), min(answer.end, passage.end)
        if start < end:
            text.stylize("bold green", start - passage.start, end - passage.start)
    return text


def book_map(answer: Answer) -> str:
    """The book as a line of cells: where its passages lie, the best one's cell full."""
    cells = ["·"] * CELLS
    for passage in reversed(answer.evidence):
        best = passage is answer.evidence[0]
        cells[min(passage.start * CELLS // answer.book.characters, CELLS - 1)] = "█" if best else "▒"
    return "".join(cells)


def one_line(text: str) -> str:
    """Without what could steer the terminal."""
    return " ".join(_CONTROL.sub(" ", text).split())
