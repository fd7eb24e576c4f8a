"""Where blocks come from: a file that is read anew each time, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mamba_ssm.book.blocks import Block, text_blocks
from mamba_ssm.book.engine import Engine
from mamba_ssm.errors import BookError
from mamba_ssm.esi.reader import PAD
from mamba_ssm.esi.search import Keys
from mamba_ssm.text import Piece, book_files, read_pieces
from mamba_ssm.utils.files import sha256_of_file

PLAIN = (".txt", ".md", ".markdown")


@dataclass(frozen=True)
class BookInfo:
    """Path and sha256 of the file that was read, and its length; of a folder, that of its files' names and sha256."""

    path: str
    sha256: str
    tokens: int
    characters: int


@dataclass(frozen=True)
class Progress:
    """How much was read: tokens, and bytes of ``total``, which is None where the file's size says nothing."""

    tokens: int
    bytes: int
    total: int | None


Report = Callable[[Progress], None]
Wants = Callable[[int], bool]
"""Which blocks are to be given, by their numbers from 0 on."""


def every(number: int) -> bool:
    """All blocks are to be given."""
    return True


class Source(Protocol):
    """A book that gives its blocks, of ``size`` tokens, any number of times. ``info`` is known after the first time."""

    info: BookInfo | None
    size: int

    def blocks(self, report: Report | None = None, wants: Wants = every) -> Iterator[tuple[Block, Keys]]:
        """The blocks with their keys."""
        ...

    def texts(self, report: Report | None = None) -> Iterator[Block]:
        """The blocks alone."""
        ...


class FileSource:
    """A book's own file. Nothing is kept of it. ``size``: tokens of a block, by default the engine's."""

    def __init__(self, path: str | os.PathLike[str], engine: Engine, size: int | None = None) -> None:
        self.path, self.engine = Path(path), engine
        self.size = engine.block_tokens if size is None else size
        self.info: BookInfo | None = None

    def blocks(self, report: Report | None = None, wants: Wants = every) -> Iterator[tuple[Block, Keys]]:
        before = np.full(self.engine.config.warmup, PAD, dtype=np.int32)
        for number, block in enumerate(self.texts(report)):
            if wants(number):
                yield block, self.engine.keys(block.ids, before)
            before = np.concatenate([before, block.ids])[-len(before) :]

    def texts(self, report: Report | None = None) -> Iterator[Block]:
        seen = 0

        def counted(pieces: Iterator[Piece]) -> Iterator[Piece]:
            nonlocal seen
            for piece in pieces:
                seen += len(piece.text.encode("utf-8", "replace"))
                yield piece

        total, tokens, characters = None, 0, 0
        for block in text_blocks(counted(read_pieces(self.path)), self.engine.tokenizer, self.size):
            if total is None and self.path.suffix.lower() in PLAIN:
                total = self.path.stat().st_size
            yield block
            tokens, characters = tokens + len(block.ids), block.offset + len(block.text)
            if report is not None:
                report(Progress(tokens, seen if total is None else min(seen, total), total))
        self.info = BookInfo(os.fspath(self.path), sha256_of(self.path), tokens, characters)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; of a folder, of its files' names and sha256. Raises BookError."""
    if not path.is_dir():
        return _sha256_of_file(path)
    lines = [f"{_sha256_of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in book_files(path)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _sha256_of_file(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise BookError(f"{path}: it went away while it was read ({error.strerror}); try again") from error
