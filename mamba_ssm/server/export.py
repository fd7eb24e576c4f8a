"""A conversation with its citations as Markdown, and its books as BibTeX or CSL JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from mamba_ssm.book import ShelfBook
from mamba_ssm.server.book_schemas import CitedPassage, Turn

MEDIA_TYPES = {
    "markdown": "text/markdown",
    "bibtex": "application/x-bibtex",
    "csl-json": "application/vnd.citationstyles.csl+json",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&!])")
_BIBTEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_BIBTEX |= {char: f"\\{char}" for char in "{}%&$#_"}

Quote = Callable[[str, int, int], str]
"""The characters start:end of a book by its id."""


def markdown(turns: Sequence[Turn], books: dict[str, ShelfBook], quote: Quote) -> str:
    """Questions, answers and passages. What books and people say is escaped: it is text, and never markup or HTML."""
    lines = ["# Conversation", ""]
    for turn in turns:
        cited = {
            number: passage
            for number, passage in enumerate(turn.evidence, 1)
            if turn.start is not None
            and turn.end is not None
            and passage.start <= turn.start <= turn.end <= passage.end
        }
        said = _plain(turn.answer) or "Nothing found."
        said += "".join(f" \\[{number}\\]" for number in cited)
        if not turn.told:
            said = f"The book does not seem to tell. The nearest it comes: {said}"
        lines += [f"## {_plain(turn.question)}", "", said, ""]
        for number, passage in enumerate(turn.evidence, 1):
            words = quote(turn.book_id, passage.start, passage.end)
            place = _place(books[turn.book_id].title, passage)
            lines += [f"> \\[{number}\\] {_plain(words)}", ">", f"> — {place}", ""]
    lines += ["## Books", ""]
    lines += [f"- *{_plain(book.title)}*. SHA-256 of the file: {book.sha256}" for book in books.values()]
    return "\n".join(lines) + "\n"


def bibtex(books: Iterable[ShelfBook]) -> str:
    """An entry for each book: all that is known of it is its title, and which file it was."""
    return "\n".join(
        f"@book{{{_key(book)},\n"
        f"  title = {{{''.join(_BIBTEX.get(char, char) for char in book.title)}}},\n"
        f"  note = {{SHA-256 of the file: {book.sha256}}}\n}}\n"
        for book in books
    )


def csl_json(books: Iterable[ShelfBook]) -> str:
    """The same for citation processors: https://citeproc-js.readthedocs.io/en/latest/csl-json/markup.html."""
    entries = [
        {"id": _key(book), "type": "book", "title": book.title, "note": f"SHA-256 of the file: {book.sha256}"}
        for book in books
    ]
    return json.dumps(entries, ensure_ascii=False, indent=2) + "\n"


def _plain(text: str) -> str:
    """One line of text, without markup."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _place(title: str, passage: CitedPassage) -> str:
    cited = [f"*{_plain(title)}*", *([_plain(passage.citation)] if passage.citation else [])]
    return ", ".join([*cited, f"characters {passage.start}–{passage.end}"])


def _key(book: ShelfBook) -> str:
    """A key of letters, digits and hyphens, which differs from book to book."""
    words = re.findall(r"[a-z0-9]+", book.title.lower())[:4]
    return "-".join([*words, book.id[:6]])
