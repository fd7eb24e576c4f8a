"""The database of a shelf: its books, their sections, and what was asked. SQLite, in WAL mode.

What a shelf holds is what this database says: a book's files are on disk before its row is committed, under a name that
no other book ever had, so a process that dies at any moment leaves at most files that no row names. Whoever opens the
shelf next removes them, unless a live process is adding a book.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_ssm.errors import ShelfError

DATABASE, LOCK, BOOKS = "shelf.sqlite", "adding.lock", "books"
VERSION = 1
PATIENCE = 30.0  # seconds to wait for another process
SCHEMA = """
CREATE TABLE books (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    characters INTEGER NOT NULL,
    added TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    file TEXT NOT NULL
);
CREATE TABLE sections (
    book TEXT NOT NULL REFERENCES books (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    title TEXT NOT NULL,
    page INTEGER
);
CREATE INDEX sections_of ON sections (book, start);
CREATE TABLE asked (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    books TEXT NOT NULL,
    answer TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class ShelfBook:
    """A book on a shelf.

    ``id`` is how the sha256 of the file at ``path`` begins; ``added`` is a time in UTC, in ISO 8601; ``fingerprint`` is
    that of the model that read it, and ``file`` the name of what the shelf keeps of it.
    """

    id: str
    title: str
    path: str
    sha256: str
    tokens: int
    characters: int
    added: str
    fingerprint: str
    file: str


@dataclass(frozen=True)
class Section:
    """A section begins at character ``start`` of a book's text, on ``page`` where there are pages."""

    start: int
    title: str
    page: int | None


@dataclass(frozen=True)
class Asked:
    """A question that was asked of ``books`` at a time in UTC; ``answer``, with the question, is what `Answer.to_dict`
    gave."""

    number: int
    at: str
    books: list[str]
    answer: dict[str, Any]


COLUMNS = ", ".join(ShelfBook.__dataclass_fields__)


class Library:
    """Opens the database of a folder, or makes it. Threads may share it. Raises ShelfError."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, folder / BOOKS
        self._lock = threading.RLock()
        with self._mendable():
            try:
                self.files.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ShelfError(f"{folder}: no shelf can be there ({error.strerror}); give another folder") from error
            self._connection = sqlite3.connect(
                folder / DATABASE, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
                self._sweep()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self._transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ShelfError(f"{self.folder}: a shelf of another version of mamba-esi; use that, or another folder")

    def _sweep(self) -> None:
        """Remove the files that no book has, unless a process is adding one."""
        with closing(self._locker(0.0)) as lock:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    return
                raise
            named = {book.file for book in self.books()}
            for file in self.files.iterdir():
                if file.stem not in named:
                    unlink(file)

    def _locker(self, patience: float) -> sqlite3.Connection:
        """A connection to the lock: SQLite has locks that are shared or exclusive, on all systems, and end with a
        process, however it ends."""
        return sqlite3.connect(self.folder / LOCK, timeout=patience, isolation_level=None)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """While in it, no process removes files that no book has yet."""
        with self._mendable(), closing(self._locker(PATIENCE)) as lock:
            lock.execute("BEGIN")
            lock.execute("SELECT * FROM sqlite_master").fetchall()  # takes the shared lock
            yield

    @contextmanager
    def _mendable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ShelfError(
                f"{self.folder}: the shelf's database cannot be used ({error}); check the folder and its space"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._mendable():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._mendable():
            return self._connection.execute(query, values).fetchall()

    def books(self) -> list[ShelfBook]:
        """In the order in which they were added."""
        return [ShelfBook(*row) for row in self._rows(f"SELECT {COLUMNS} FROM books ORDER BY number")]

    def sections(self, book: str) -> list[Section]:
        rows = self._rows("SELECT start, title, page FROM sections WHERE book = ? ORDER BY start", book)
        return [Section(*row) for row in rows]

    def insert(self, book: ShelfBook, sections: Sequence[Section]) -> tuple[ShelfBook, list[ShelfBook]]:
        """Add a book, whose files are on disk, in place of those of the same id or path.

        Returns the book that is there now, another than ``book`` where another process was faster, and those that are
        not there any more.
        """
        with self._transaction() as connection:
            query = f"SELECT {COLUMNS} FROM books WHERE id = ? OR path = ?"
            old = [ShelfBook(*row) for row in connection.execute(query, (book.id, book.path))]
            same = (book.sha256, book.fingerprint)
            there = next((other for other in old if (other.sha256, other.fingerprint) == same), None)
            gone = [other for other in old if other is not there]
            connection.executemany("DELETE FROM books WHERE id = ?", [(other.id,) for other in gone])
            if there is not None:
                return there, gone
            marks = ", ".join("?" * len(ShelfBook.__dataclass_fields__))
            connection.execute(f"INSERT INTO books ({COLUMNS}) VALUES ({marks})", tuple(vars(book).values()))
            connection.executemany(
                "INSERT INTO sections (book, start, title, page) VALUES (?, ?, ?, ?)",
                [(book.id, section.start, section.title, section.page) for section in sections],
            )
        return book, gone

    def delete(self, book: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM books WHERE id = ?", (book,))

    def record(self, at: str, books: Sequence[str], answer: dict[str, Any]) -> None:
        values = (at, json.dumps(books), json.dumps(answer))
        with self._transaction() as connection:
            connection.execute("INSERT INTO asked (at, books, answer) VALUES (?, ?, ?)", values)

    def asked(self, limit: int) -> list[Asked]:
        """The latest questions, the latest first."""
        rows = self._rows("SELECT number, at, books, answer FROM asked ORDER BY number DESC LIMIT ?", limit)
        return [Asked(number, at, json.loads(books), json.loads(answer)) for number, at, books, answer in rows]

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def unlink(file: Path) -> None:
    """Remove a file that no book has. One that Windows keeps while a process reads it goes with the next sweep."""
    with suppress(FileNotFoundError, PermissionError):
        file.unlink()
