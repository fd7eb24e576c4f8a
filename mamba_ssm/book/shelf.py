"""A shelf: books that were read once and are kept, to be asked together."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mamba_ssm.book import index
from mamba_ssm.book.answers import Answer, Seconds, check, reply, windows_for
from mamba_ssm.book.blocks import Block, text_of
from mamba_ssm.book.book import MAX_NEW_TOKENS, PASSAGES, Book
from mamba_ssm.book.engine import Engine, half_windows
from mamba_ssm.book.find import Finder, Found, Window, trimmed
from mamba_ssm.book.index import Index, MappedKeys, token_keys
from mamba_ssm.book.library import Asked, Library, Section, ShelfBook, unlink
from mamba_ssm.book.rank import KEPT, rank
from mamba_ssm.book.relevance import BINS, Relevance
from mamba_ssm.book.shelving import ESI, ID_DIGITS, INDEX, ROW, as_unicode, now, read_into, read_row
from mamba_ssm.book.source import BookInfo, Report, sha256_of
from mamba_ssm.book.store import StoredSource, is_saved, open_stored
from mamba_ssm.errors import BookError, ShelfError
from mamba_ssm.esi.search import Query
from mamba_ssm.text import read_pieces
from mamba_ssm.text.books import SUFFIXES

ENVIRONMENT = "MAMBA_ESI_SHELF"


def shelf_folder() -> Path:
    """Where the shelf is kept: MAMBA_ESI_SHELF, or ``shelf`` in the user's folder for this program's data."""
    if asked := os.environ.get(ENVIRONMENT):
        return Path(asked)
    from platformdirs import user_data_path

    return user_data_path("mamba-esi", appauthor=False) / "shelf"


class Shelf:
    """Books that were read once, in a folder of their own. Use it in a ``with``, or close it.

    Threads may share a shelf, and processes a folder.
    """

    def __init__(self, library: Library, model: str | os.PathLike[str] | Engine | None, device: str) -> None:
        self._library, self._model, self._device = library, model, device
        self._indexes: dict[str, Index] = {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str] | None = None,
        model: str | os.PathLike[str] | Engine | None = None,
        device: str = "auto",
    ) -> Shelf:
        """Open the shelf in a folder, or begin one there; by default in `shelf_folder`.

        The model is loaded when it is first needed: to add a book, to ask, or for a book's text. Raises ShelfError.
        """
        return cls(Library(shelf_folder() if folder is None else Path(folder)), model, device)

    @cached_property
    def engine(self) -> Engine:
        """What reads and answers."""
        return Engine.load(self._model, self._device)

    @property
    def folder(self) -> Path:
        return self._library.folder

    def add(self, path: str | os.PathLike[str], report: Report | None = None) -> ShelfBook:
        """Read a book, a file or a folder as `mamba_ssm.read` takes them, and keep it.

        A file whose content is on the shelf already is not read again. One that changed is, and replaces what the shelf
        had from its path. Raises BookError, ShelfError.
        """
        path = Path(os.path.abspath(path))
        if not path.is_file():
            next(read_pieces(path))  # raises where that is no folder of a book, and says why
        elif is_saved(path):
            raise BookError(f"{path}: saved by `mamba-esi read`; add the book itself")
        sha256 = sha256_of(path)
        known = {(book.sha256, book.fingerprint): book for book in self.books()}
        if there := known.get((sha256, self.engine.fingerprint)):
            for book in known.values():
                if book.path == as_unicode(path) and book is not there:
                    self.remove(book.id)
            return there
        name = f"{sha256[:ID_DIGITS]}-{secrets.token_hex(8)}"
        with self._library.adding():
            try:
                book, sections = read_into(self._library.files, name, path, sha256, self.engine, report)
                there, gone = self._library.insert(book, sections)
            except BaseException:
                self._unlink(name)
                raise
        for old in gone if there is book else (*gone, book):
            self._unlink(old.file)
        return there

    def take_in(self, folder: Path) -> None:
        """Move the books that others read into a folder of the same disk onto the shelf: those with a row, NAME.json.

        A process that dies meanwhile loses none: the next call goes on. Raises ShelfError.
        """
        with self._library.adding():
            for row in sorted(folder.glob(f"*{ROW}")):
                book, sections = read_row(row)
                files = [row.with_suffix(suffix) for suffix in (ESI, INDEX)]
                if book.file not in {other.file for other in self.books()}:
                    try:
                        for file in files:
                            self._file(book.file, file.suffix).unlink(missing_ok=True)
                            os.link(file, self._file(book.file, file.suffix))
                    except OSError as error:
                        raise ShelfError(f"{file}: cannot be put on the shelf ({error.strerror})") from error
                    there, gone = self._library.insert(book, sections)
                    for old in gone if there is book else (*gone, book):
                        self._unlink(old.file)
                for file in (row, *files):
                    file.unlink()

    def _file(self, name: str, suffix: str) -> Path:
        return self._library.files / f"{name}{suffix}"

    def _unlink(self, name: str) -> None:
        self._indexes.pop(name, None)
        for suffix in (ESI, INDEX):
            unlink(self._file(name, suffix))

    def books(self) -> list[ShelfBook]:
        """The books that were read to their end, in the order in which they were added."""
        return self._library.books()

    def book(self, key: str) -> ShelfBook:
        """The book of that id or title, or the only one whose id or title begins so. Raises ShelfError."""
        books, wanted = self.books(), key.casefold()
        exact = [book for book in books if wanted in (book.id, book.title.casefold())]
        found = exact or [b for b in books if b.id.startswith(wanted) or b.title.casefold().startswith(wanted)]
        if not wanted or not found:
            raise ShelfError(f"no book {key!r} on the shelf: `mamba-esi shelf list` shows them")
        if len(found) > 1:
            raise ShelfError(f"{key!r} is more than one book: say {', '.join(book.id for book in found[:8])}")
        return found[0]

    def open_book(self, key: str) -> Book:
        """A book of the shelf, to ask it alone. Close it. Raises ShelfError, BookError."""
        return Book(self._source(self.book(key)), self.engine)

    def _source(self, book: ShelfBook) -> StoredSource:
        self._check(book)
        return open_stored(self._file(book.file, ESI), self.engine)

    def _check(self, book: ShelfBook) -> None:
        if book.fingerprint != self.engine.fingerprint:
            raise ShelfError(
                f"{book.title}: read with another model than {self.engine.name!r}; add {book.path} again, or pass the "
                "same --model and --esi"
            )

    def _index(self, book: ShelfBook) -> Index:
        self._check(book)
        index = self._indexes.get(book.file)
        if index is None:
            path, vocabulary = self._file(book.file, INDEX), self.engine.tokenizer.vocab_size
            index = self._indexes[book.file] = Index.load(path, book.tokens, vocabulary)
        return index

    def text(self, key: str, start: int = 0, end: int | None = None) -> str:
        """Characters start:end of a book's text."""
        return text_of(self._blocks(self.book(key), start, end), start, end)

    def on_page(self, key: str, page: int, start: int, end: int) -> tuple[int, int]:
        """Which of characters start:end of a book's text are on a page: where they begin and end."""
        marks = [mark for block in self._blocks(self.book(key), start, end) for mark in block.marks]
        spans = zip(marks, [*(mark.start for mark in marks[1:]), end], strict=True)
        there = [(max(mark.start, start), min(stop, end)) for mark, stop in spans if mark.page == page]
        there = [(first, stop) for first, stop in there if first < stop]
        return (there[0][0], there[-1][1]) if there else (start, start)

    def _blocks(self, book: ShelfBook, start: int, end: int | None) -> Iterator[Block]:
        """The blocks that characters start:end of a book's text are in."""
        offsets = self._index(book).characters
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        with self._source(book) as source:
            for number in range(max(first, 0), len(offsets)):
                block, _ = source.block(number)
                if end is not None and block.offset >= end:
                    return
                yield block

    def sections(self, key: str) -> list[Section]:
        """Where the sections of a book begin, in order; none where it has no headings."""
        return self._library.sections(self.book(key).id)

    def relevance(self, key: str, question: str, bins: int = BINS) -> Relevance:
        """How well each part of a book fits a question. See `Book.relevance`."""
        with self.open_book(key) as book:
            return book.relevance(question, bins)

    def remove(self, key: str) -> ShelfBook:
        """Remove a book, and return what it was. What was asked stays in the history."""
        book = self.book(key)
        self._library.delete(book.id)
        self._unlink(book.file)
        return book

    def ask(
        self,
        question: str,
        books: Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        passages: int = PASSAGES,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Answer:
        """Answer a question from books of the shelf together, by id or title; by default from all. See `Book.ask`.

        ``book`` of each passage is the id of the book that it is from; the answer's ``book`` is what it was found in.
        Raises ShelfError where there is no such book, or none; QuestionError.
        """
        check([question], top_k, passages, max_new_tokens)
        asked = {book.id: book for book in (self.books() if books is None else map(self.book, books))}
        if not asked:
            raise ShelfError("there are no books to ask: `mamba-esi shelf add FILE` adds one")
        started = time.perf_counter()
        engine = self.engine
        top_k = top_k or engine.config.top_k
        embedded = engine.question(question)
        k = windows_for(engine, top_k, passages)
        found, counts = self.search(embedded.query, list(asked.values()), KEPT * k)
        ranked = rank(question, embedded, found, counts, k)
        searched = time.perf_counter()
        said = reply(engine, question, embedded, ranked, top_k, max_new_tokens)
        book = next(iter(asked.values())) if said.book is None else asked[said.book]
        info = BookInfo(book.path, book.sha256, book.tokens, book.characters)
        seconds = Seconds(0.0, searched - started, time.perf_counter() - searched)
        answer = said.answer(question, passages, engine.name, info, seconds)
        self._library.record(now(), list(asked), answer.to_dict())
        return answer

    def search(
        self, query: Query, books: Sequence[ShelfBook], k: int, tokens: int | None = None
    ) -> tuple[list[Found], NDArray[np.int64] | None]:
        """The k best windows of some books, best first, and how often each token is in these, if that is known.

        ``tokens``: of all books that are searched, here and elsewhere; by default those of these books. It decides how
        they are searched, on which scores depend.
        """
        if (sum(book.tokens for book in books) if tokens is None else tokens) > index.EXACT_TOKENS:
            return self._search_in_two_passes(query, books, k), None
        found: list[Found] = []
        counts = np.zeros(self.engine.tokenizer.vocab_size, np.int64)
        for book in books:
            with self._source(book) as source:
                finder = Finder([query], k, self.engine)
                for block, keys in source.blocks():
                    finder.push(block, keys)
            found += [each._replace(window=replace(each.window, book=book.id)) for each in finder.found()[0]]
            counts += finder.counts()
        return sorted(found, key=lambda each: -each.score)[:k], counts

    def _search_in_two_passes(self, query: Query, books: Sequence[ShelfBook], k: int) -> list[Found]:
        """As above, without headings: the first pass knows tokens alone."""
        engine, stride, margin = self.engine, self.engine.config.stride, self.engine.config.margin
        query = trimmed(query)
        indexes = [self._index(book) for book in books]
        ids = [each.ids for each in indexes]
        chosen = index.candidates(query, self._token_keys, ids, stride, max(k, index.CANDIDATES))
        scored: list[tuple[float, int, int]] = []
        for number, windows in enumerate(chosen):
            if len(windows):
                with self._keys(books[number], indexes[number]) as keys:
                    scores = index.exact_scores(query, keys, windows, stride).tolist()
                scored += zip(scores, [number] * len(scores), windows.tolist(), strict=True)
        best = sorted(scored, key=lambda each: (-each[0], *each[1:]))[:k]
        found: dict[tuple[int, int], Found] = {}
        for number in {number for _, number, _ in best}:
            book, own = books[number], [(window, score) for score, of, window in best if of == number]
            with self._keys(book, indexes[number]) as keys, self._source(book) as source:
                matched = index.exact_matches(query, keys, np.array([window for window, _ in own]), stride)
                for (window, score), matches in zip(own, matched, strict=True):
                    first = stride * window
                    begin, end = max(first - margin, 0), first + engine.config.window + margin
                    there = Window.of(source.span(begin, end - begin), first, engine.config)
                    found[number, window] = Found(replace(there, book=book.id), score, 0.0, matches)
        ordered = [found[number, window] for _, number, window in best]
        return [each for each in ordered if each.window.own_text]

    def _keys(self, book: ShelfBook, of: Index) -> MappedKeys:
        rows = half_windows(book.tokens, self.engine.config.stride)
        return MappedKeys(self._file(book.file, ESI), of, rows, self.engine.width)

    @cached_property
    def _token_keys(self) -> Tensor:
        return token_keys(self.engine, self.folder)

    def history(self, limit: int = 20) -> list[Asked]:
        """The latest questions with their answers, the latest first."""
        return self._library.asked(limit)

    def close(self) -> None:
        self._library.close()

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def books_in(path: str | os.PathLike[str]) -> list[Path]:
    """The file ``path``, or the books in the folder ``path`` and below it, by their suffixes, in order.

    Raises BookError for a folder without books.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise BookError(f"{path}: no books in it ({', '.join(sorted(SUFFIXES))}); give another folder, or files")
    return found
