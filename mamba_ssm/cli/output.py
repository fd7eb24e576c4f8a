"""What people see: an answer, its passages with the matched words, and where in the book they lie."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
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
    """Print an answer for people, with its question and its passages. ``titles``: those of a shelf's books, by id."""
    from rich.text import Text

    console().print(Text(one_line(answer.question), style="dim"))
    show_answer(answer)
    show_evidence(answer, titles)


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def training_bar(console: Console) -> Progress:
    """Steps of a training, and what its task's field ``said`` says of it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def show_answer(answer: Answer, name: str = "") -> None:
    """Print what was said, and how sure it is, after a name."""
    from rich.text import Text

    said = Text(name).append(one_line(answer.text) or "(no answer)", style="bold")
    doubt = "" if answer.told else "; the book does not seem to tell"
    console().print(said, Text(f"(confidence {answer.confidence:.0%}{doubt})", style="dim"))


def show_evidence(answer: Answer, titles: Mapping[str, str] | None = None) -> None:
    """Print the passages, and where in the book they lie."""
    from rich.padding import Padding
    from rich.text import Text

    from mamba_ssm.book import place

    out, words = console(), words_of(answer.question)
    for number, passage in enumerate(answer.evidence, 1):
        book = [titles[passage.book]] if titles and passage.book else []
        heading = one_line(" · ".join([*book, *place(passage), f"score {passage.score:.1f}"]))
        out.print()
        out.print(Text(f"{number:>2}  "), Text(heading, style="cyan"), sep="")
        out.print(Padding(highlight(passage, answer, words), (0, 0, 0, 4)))
    if answer.evidence and titles is None:
        out.print()
        out.print(Text("    " + book_map(answer)))


def words_of(question: str) -> set[str]:
    """The words of a question that are worth marking."""
    return {word for word in _WORD.findall(question.casefold()) if len(word) >= _FEW} - _GRAMMAR


def highlight(passage: Passage, answer: Answer, words: set[str]) -> Text:
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
