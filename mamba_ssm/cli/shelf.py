"""``mamba-esi shelf``: books that are read once, kept, and asked together."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mamba_ssm.cli.options import (
    Device,
    DeviceOption,
    EsiOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    PassagesOption,
    TopKOption,
)
from mamba_ssm.cli.output import one_line, write
from mamba_ssm.errors import MambaESIError

if TYPE_CHECKING:
    from mamba_ssm.book import Shelf

app = typer.Typer(no_args_is_help=True, help="Keep books, read once, and ask them together.")

ShelfOption = Annotated[
    Path | None,
    typer.Option(
        "--shelf",
        metavar="FOLDER",
        envvar="MAMBA_ESI_SHELF",
        file_okay=False,
        help="Where the shelf is kept. (default: the user's folder for data)",
    ),
]


@app.command()
def add(
    books: Annotated[
        list[str],
        typer.Argument(metavar="FILE|FOLDER...", help="Books, and folders whose books are added with all below them."),
    ],
    shelf: ShelfOption = None,
    model: ModelOption = None,
    esi: EsiOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Read books and keep them. A book that is there already is not read again, one that changed is."""
    from mamba_ssm.book import bar, books_in

    paths = [path for book in books for path in books_in(book)]
    failed = 0
    with open_shelf(shelf, model, esi, device) as opened:
        for path in paths:
            try:
                with bar() as report:
                    added = opened.add(path, report)
            except MambaESIError as error:  # of many books, one that cannot be read must not keep out the rest
                failed += 1
                print(f"mamba-esi: {error}", file=sys.stderr)
                continue
            print(f"{added.id}  {one_line(added.title)}: {added.tokens:,} tokens", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command("list")
def show_list(shelf: ShelfOption = None, as_json: JsonOption = False) -> None:
    """Show the books, in the order in which they were added."""
    from mamba_ssm.book import Shelf

    with Shelf.open(shelf) as opened:
        for book in opened.books():
            if as_json:
                write(json.dumps(asdict(book), ensure_ascii=False) + "\n")
            else:
                write(f"{book.id}  {book.tokens:>12,} tokens  {one_line(book.title)}  ({one_line(book.path)})\n")


@app.command()
def remove(
    book: Annotated[str, typer.Argument(metavar="BOOK", help="Its id or title, or how either begins.")],
    shelf: ShelfOption = None,
) -> None:
    """Remove a book from the shelf. The file that it was read from stays."""
    from mamba_ssm.book import Shelf

    with Shelf.open(shelf) as opened:
        removed = opened.remove(book)
    print(f"{removed.id}  {one_line(removed.title)}: removed", file=sys.stderr)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.")],
    books: Annotated[
        list[str] | None,
        typer.Option("--book", metavar="BOOK", help="Ask this book alone; again for more. (default: all)"),
    ] = None,
    as_json: JsonOption = False,
    shelf: ShelfOption = None,
    model: ModelOption = None,
    esi: EsiOption = None,
    top_k: TopKOption = None,
    device: DeviceOption = Device.auto,
    max_new_tokens: MaxNewTokensOption = 32,
    passages: PassagesOption = 8,
) -> None:
    """Answer a question from the books of the shelf, with the passages that the answer comes from."""
    if not question.strip():
        raise typer.BadParameter("the question is empty", param_hint="QUESTION")
    with open_shelf(shelf, model, esi, device) as opened:
        answer = opened.ask(question, books or None, top_k=top_k, passages=passages, max_new_tokens=max_new_tokens)
        titles = {book.id: book.title for book in opened.books()}
    if as_json:
        write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
    else:
        from mamba_ssm.cli.output import show

        show(answer, titles)


def open_shelf(folder: Path | None, model: str | None, esi: str | None, device: Device) -> Shelf:
    from mamba_ssm.book import Engine, Shelf

    return Shelf.open(folder, Engine.load(model, device.value, esi))
