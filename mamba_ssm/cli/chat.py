"""``mamba-esi chat``: ask books one question after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mamba_ssm.cli.options import Device, DeviceOption, EsiOption, ModelOption, PassagesOption
from mamba_ssm.errors import MambaESIError

if TYPE_CHECKING:
    from mamba_ssm.book import Book, Engine
    from mamba_ssm.book.conversation import Conversation

AROUND = 600  # characters of the book that /open shows on either side of a passage
HELP = """\
/open N     passage N of the last answer, with the text around it
/save FILE  everything asked so far, with its passages, as Markdown
/books      the books that are asked
/help       this
/quit       the end, as Ctrl-D
All else is a question. One may leave out what the one before it said. A space goes before one that begins with /."""
COMMANDS = ("/open", "/save", "/books", "/help", "/quit")


def chat(
    books: Annotated[
        list[str],
        typer.Argument(metavar="BOOK...", help="Books, as for `ask`; the passages shown are the best book's."),
    ],
    model: ModelOption = None,
    esi: EsiOption = None,
    device: DeviceOption = Device.auto,
    passages: PassagesOption = 3,
) -> None:
    """Ask BOOKs one question after another, in a terminal or from a pipe."""
    typed = sys.stdin.isatty()
    lines = _terminal() if typed else (line.rstrip("\n") for line in sys.stdin)
    from mamba_ssm.book import Engine
    from mamba_ssm.book.conversation import Conversation

    engine = Engine.load(model, device.value, esi)
    with ExitStack() as stack:
        conversation = Conversation([stack.enter_context(_ready(path, engine)) for path in books])
        for line in lines:
            if line.rstrip() == "/quit":
                break
            try:
                if line.startswith("/"):
                    _command(line, conversation)
                elif line.strip():
                    _turn(line.strip(), conversation, passages, typed)
            except MambaESIError as error:
                print(f"mamba-esi: {error}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                if not typed:
                    raise  # in a terminal it ends this answer, not the conversation


def _ready(path: str, engine: Engine) -> Book:
    """A book that was read, or is read now."""
    from mamba_ssm.book import load_book, read
    from mamba_ssm.book.store import is_saved

    return load_book(path, engine) if is_saved(Path(path)) else read(path, engine)


def _terminal() -> Iterator[str]:
    """The lines that are typed, with history and completion, until Ctrl-D. Raises MambaESIError."""
    try:
        from mamba_ssm.cli.prompt import typed_lines
    except ModuleNotFoundError as error:
        raise MambaESIError(
            'a chat in a terminal needs prompt_toolkit: pip install "mamba-esi[chat]", or pipe questions in'
        ) from error
    print("Ask a question; /help lists the commands.")
    return typed_lines(COMMANDS, with_files=("/save",))


def _turn(question: str, conversation: Conversation, passages: int, typed: bool) -> None:
    """Ask, and print the answers as they come, then the passages of the best."""
    from rich.text import Text

    from mamba_ssm.cli.output import console, one_line, show_answer, show_evidence

    out = console()
    if not typed:
        out.print(Text(f"> {one_line(question)}", style="dim"))
    if context := conversation.context(question):
        out.print(Text(f"(searched with: {one_line(context)})", style="dim"))
    several = len(conversation.books) > 1
    for answer in conversation.ask_each(question, passages=passages):
        show_answer(answer, f"{answer.book.path}: " if several else "")
    best = conversation.turns[-1].answers[0]
    if several:
        out.print(Text(f"passages of {best.book.path}", style="dim"))
    show_evidence(best)
    out.print()


def _command(line: str, conversation: Conversation) -> None:
    """Do what a line with / says. Raises MambaESIError."""
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    if name == "/help":
        print(HELP)
    elif name == "/books":
        for book in conversation.books:
            assert book.info is not None
            print(f"{book.info.path}: {book.info.tokens:,} tokens, {book.info.characters:,} characters")
    elif name == "/open":
        _open(argument, conversation)
    elif name == "/save":
        _save(argument, conversation)
    else:
        raise MambaESIError(f"no command {name}: /help lists them; put a space before a question that begins with /")


def _open(number: str, conversation: Conversation) -> None:
    from rich.text import Text

    from mamba_ssm.book import place
    from mamba_ssm.cli.output import console, highlight, one_line, words_of

    if not conversation.turns:
        raise MambaESIError("nothing was asked yet: ask a question first")
    answer = conversation.turns[-1].answers[0]
    count = len(answer.evidence)
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= count):
        raise MambaESIError(f"/open takes the number of a passage, 1 to {count}" if count else "there are no passages")
    passage = answer.evidence[int(number) - 1]
    book = next(book for book in conversation.books if book.info == answer.book)
    start = max(passage.start - AROUND, 0)
    text = book.text(start, passage.end + AROUND)
    shown = highlight(
        replace(passage, text=text, start=start, end=start + len(text)), answer, words_of(answer.question)
    )
    shown.stylize("dim", 0, passage.start - start)
    shown.stylize("dim", passage.end - start)
    out = console()
    out.print(Text(one_line(" · ".join([answer.book.path, *place(passage)])), style="cyan"))
    out.print(shown)
    out.print()


def _save(name: str, conversation: Conversation) -> None:
    from mamba_ssm.utils.files import written_aside

    if not name:
        raise MambaESIError("/save takes the name of a file")
    path = Path(name).expanduser()
    with written_aside(path) as part:
        part.write_text(conversation.markdown(), encoding="utf-8")
    print(path)
