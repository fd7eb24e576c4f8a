"""Sources of text as documents, streamed: files, folders of files, JSON lines, and data sets."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from mamba_ssm.errors import CorpusError
from mamba_ssm.text import read_pieces
from mamba_ssm.text.books import SUFFIXES
from mamba_ssm.training.corpus.corpus import sha256_of

JSON_LINES, JSON_LINES_GZ, TEXT_GZ = ".jsonl", ".jsonl.gz", ".txt.gz"
LINE_BYTES = 1 << 26
PIECE_CHARS = 1 << 15


class Document(NamedTuple):
    """A text in pieces, to be read before the next document is asked for; ``bytes`` of its source were read so far."""

    pieces: Iterable[str]
    bytes: int


class Source(Protocol):
    """``size`` in bytes, where it is known."""

    size: int | None

    def identity(self) -> object:
        """What JSON can hold, and is another for other text."""
        ...

    def documents(self) -> Iterator[Document]:
        """Raises CorpusError or BookError, as late as the damaged place is reached."""
        ...


class Files:
    """A file, or a folder with all below it, sorted by name: a document a file, or a line of JSON lines."""

    def __init__(self, path: Path, field: str) -> None:
        self.field, self.files = field, _files(path)
        self.size: int | None = sum(file.stat().st_size for file in self.files)

    def identity(self) -> object:
        return [self.field, *([_kind(file), sha256_of(file)] for file in self.files)]

    def documents(self) -> Iterator[Document]:
        before = 0
        for file in self.files:
            for pieces, read in _documents(file, self.field):
                yield Document(pieces, before + read)
            before += file.stat().st_size


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CorpusError(f"{path}: neither a file nor a folder; save it to disk first")
    # Empty files, such as __init__.txt in many trees, are no documents; those given by name are an error.
    found = sorted(
        file
        for file in path.rglob("*")
        if _kind(file) in _KINDS and not _hidden(file.relative_to(path)) and file.is_file() and file.stat().st_size
    )
    if not found:
        raise CorpusError(f"{path}: no text in this folder; give one with files {', '.join(sorted(_KINDS))}")
    return found


_KINDS = SUFFIXES | {JSON_LINES, JSON_LINES_GZ, TEXT_GZ}


def _kind(file: Path) -> str:
    """The suffix, with the one before .gz."""
    name = file.name.lower()
    return next((kind for kind in (JSON_LINES_GZ, TEXT_GZ) if name.endswith(kind)), file.suffix.lower())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _documents(file: Path, field: str) -> Iterator[tuple[Iterable[str], int]]:
    """Each document with the bytes of the file that were read."""
    match _kind(file):
        case ".jsonl" | ".jsonl.gz":
            yield from _json_lines(file, field)
        case ".txt.gz":
            yield _unpacked(file), 0
        case _:
            yield (piece.text for piece in read_pieces(file)), 0


@contextmanager
def _opened(file: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The content, unpacked where it is packed, and the file as it is on disk. Raises CorpusError."""
    try:
        with file.open("rb") as raw:
            packed = _kind(file).endswith(".gz")
            yield (cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw), raw
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{file}: cannot be read ({error}); check the path and the file") from error


def _json_lines(file: Path, field: str) -> Iterator[tuple[Iterable[str], int]]:
    with _opened(file) as (content, raw):
        number = 0
        while line := content.readline(LINE_BYTES + 1):
            number += 1
            if len(line) > LINE_BYTES:
                raise CorpusError(f"{file}, line {number}: longer than {LINE_BYTES:,} bytes; cut the document in two")
            if not line.isspace():
                yield (_text(line, field, f"{file}, line {number}"),), raw.tell()


def _text(line: bytes, field: str, place: str) -> str:
    value: Any
    try:
        value = json.loads(line)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        value = None
    if not isinstance(value, str):
        raise CorpusError(f'{place}: not a JSON object with a text "{field}"; mend the line, or name another --field')
    return value


def _unpacked(file: Path) -> Iterator[str]:
    with _opened(file) as (content, _):
        text = io.TextIOWrapper(content, encoding="utf-8-sig")
        try:
            while piece := text.read(PIECE_CHARS):
                yield piece
        except UnicodeDecodeError as error:
            raise CorpusError(f"{file}: not UTF-8 text ({error}); save it as UTF-8") from error
