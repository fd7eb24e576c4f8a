"""What a shelf keeps of a book: its files, and its row, which stands beside them where others read the book."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from mamba_ssm.book import index
from mamba_ssm.book.engine import Engine
from mamba_ssm.book.index import Index
from mamba_ssm.book.library import Section, ShelfBook
from mamba_ssm.book.source import FileSource, Report
from mamba_ssm.book.store import SUFFIX as ESI
from mamba_ssm.book.store import StoredSource, open_stored, write
from mamba_ssm.errors import BookError, ShelfError

ID_DIGITS = 16
INDEX = index.SUFFIX
ROW = ".json"
ROW_BYTES = 1 << 26
SEGMENTS = 32  # of a block, at most: few, for of many books windows are read singly, each out of its block


def read_into(
    folder: Path, name: str, path: Path, sha256: str, engine: Engine, report: Report | None = None
) -> tuple[ShelfBook, list[Section]]:
    """Read a book, whose content has that sha256, into files of that name in a folder, until they are on disk.

    Raises BookError where the book cannot be read or changes meanwhile, ShelfError where the folder cannot be written.
    """
    try:
        with (folder / f"{name}{ESI}").open("xb") as file:
            size = min(engine.block_tokens, SEGMENTS * engine.config.block)
            write(FileSource(path, engine, size), engine, file, report)
            file.flush()
            os.fsync(file.fileno())
        with open_stored(folder / f"{name}{ESI}", engine) as source:
            Index.of(source, engine.config.window).save(folder / f"{name}{INDEX}")
            info, sections = source.info, list(_sections(source))
    except OSError as error:
        raise ShelfError(f"{folder}: cannot be written ({error.strerror}); check its space") from error
    assert info is not None
    if info.sha256 != sha256:
        raise BookError(f"{path}: it changed while it was read; add it again")
    title, place = as_unicode(path.stem), as_unicode(path)
    counts = (info.tokens, info.characters)
    return ShelfBook(sha256[:ID_DIGITS], title, place, sha256, *counts, now(), engine.fingerprint, name), sections


def write_row(path: Path, book: ShelfBook, sections: list[Section]) -> None:
    row = {"book": asdict(book), "sections": [[s.start, s.title, s.page] for s in sections]}
    with path.open("w", encoding="utf-8") as file:
        json.dump(row, file)
        file.flush()
        os.fsync(file.fileno())


def read_row(path: Path) -> tuple[ShelfBook, list[Section]]:
    """What `write_row` wrote to NAME.json, for a book of that name. Raises ShelfError where it is anything else."""
    try:
        if path.stat().st_size > ROW_BYTES:
            raise ValueError("too large")
        row = json.loads(path.read_bytes())
        book, sections = ShelfBook(**row["book"]), [Section(*section) for section in row["sections"]]
        counts = ("tokens", "characters")
        if any(type(value) is not (int if name in counts else str) for name, value in vars(book).items()):
            raise TypeError("other types")
        if book.file != path.stem or book.id != book.sha256[:ID_DIGITS]:
            raise ValueError("of another book")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ShelfError(f"{path}: damaged; remove it, and read the book again") from error
    return book, sections


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def as_unicode(name: str | Path) -> str:
    """A file's name, for a database: one that is no Unicode is shown as far as it is."""
    return os.fsencode(name).decode("utf-8", "replace")


def _sections(source: StoredSource) -> Iterator[Section]:
    """A section where the heading changes."""
    last = None
    for block in source.texts():
        for mark in block.marks:
            if mark.section is not None and mark.section != last:
                yield Section(mark.start, mark.section.encode("utf-8", "replace").decode(), mark.page)
            last = mark.section
