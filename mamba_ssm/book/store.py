"""A book that was read, in one file: the .esi format, version 1.

A zip archive without compression: ``mamba-esi`` (the format's version, first, so that the file tells what it is),
``blocks/000000`` and on (safetensors, a block each), and ``meta.json``. Nothing in the file is run, and no size in it
is believed before it is compared.

Shapes: n tokens of a block, L those rounded up to half windows, R search width.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mamba_ssm.book.blocks import Block, Mark
from mamba_ssm.book.engine import Engine, half_windows
from mamba_ssm.book.source import BookInfo, Progress, Report, Source, Wants, every
from mamba_ssm.errors import BookError
from mamba_ssm.esi.search import Keys
from mamba_ssm.utils.files import written_aside

MAGIC, VERSION, META = "mamba-esi", 1, "meta.json"
SUFFIX = ".esi"
META_BYTES = 1 << 16
BLOCK_TOKENS = 1 << 17
BYTES_PER_TOKEN = 1024  # far above any vocabulary's longest token
# What the readers of zip, safetensors, JSON and UTF-8 raise for what they dislike, and this module's own checks.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, SafetensorError, EOFError, OSError, RuntimeError)
_DAMAGE += (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error)
_KINDS = {"ids": np.int32, "starts": np.int32, "ends": np.int32, "codes": np.int8, "scales": np.float16}
_KINDS |= {"text": np.uint8, "marks": np.uint8}


def is_saved(path: Path) -> bool:
    """Whether a file is, or claims to be, a book that was saved."""
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(30 + len(MAGIC))
    except OSError:  # whoever reads it says what is wrong
        return False
    return head.startswith(b"PK\x03\x04") and head[30:] == MAGIC.encode()


def write(source: Source, engine: Engine, file: BinaryIO, report: Report | None = None) -> None:
    """Read a book and write it to an open file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MAGIC, str(VERSION))
        count = 0
        for block, keys in source.blocks(report):
            archive.writestr(_name(count), _pack(block, keys))
            count += 1
        assert source.info is not None
        meta = {
            "fingerprint": engine.fingerprint,
            "block_tokens": source.size,
            "blocks": count,
            "book": asdict(source.info),
        }
        archive.writestr(META, json.dumps(meta))


def _name(number: int) -> str:
    return f"blocks/{number:06}"


def _pack(block: Block, keys: Keys) -> bytes:
    parts = {
        "ids": block.ids,
        "starts": block.starts - block.offset,
        "ends": block.ends - block.offset,
        "codes": keys.codes.cpu().numpy(),
        "scales": keys.scales.cpu().numpy(),
        "text": np.frombuffer(block.text.encode("utf-8", "surrogatepass"), np.uint8),
        "marks": np.frombuffer(json.dumps([block.offset, block.marks]).encode(), np.uint8),
    }
    return save({name: np.ascontiguousarray(part, _KINDS[name]) for name, part in parts.items()})


class StoredSource:
    """A saved book. Reads a block at a time, each as often as it is asked for.

    ``name`` is what errors call the file. Raises BookError if it is damaged, or was read with another model.
    """

    def __init__(self, file: BinaryIO, engine: Engine, name: str) -> None:
        self.file, self.engine, self.name = file, engine, name
        self._lock = threading.Lock()
        self._sound: set[str] = set()  # members that were checked: every question reads them all
        try:
            self._archive = zipfile.ZipFile(file)
            meta = json.loads(self._member(META, META_BYTES))
            version = self._member(MAGIC, 16)
            if version != str(VERSION).encode():
                raise BookError(f"{name}: saved by another version of mamba-esi; read the book again")
            self.info: BookInfo | None = BookInfo(**meta["book"])
            self._check_meta(meta, self.info)
        except _DAMAGE as error:
            raise self._damaged() from error
        if meta["fingerprint"] != engine.fingerprint:
            raise BookError(
                f"{name}: read with another model than {engine.name!r}; read the book again, or pass the same --model "
                "and --esi"
            )

    def _damaged(self) -> BookError:
        return BookError(f"{self.name}: damaged, or not a book saved by mamba-esi; read the book again")

    def _member(self, name: str, limit: int) -> bytes:
        info = self._archive.getinfo(name)
        plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        if not plain or not info.file_size == info.compress_size <= limit:
            raise ValueError(f"{name} is not stored plainly")
        data = self._read(self._place(info), info.file_size)
        if name not in self._sound and zlib.crc32(data) != info.CRC:
            raise ValueError(f"{name} was changed")
        return data

    def _place(self, info: zipfile.ZipInfo) -> int:
        """Where in the file a member's bytes begin: behind its name, and what stands beside it."""
        return info.header_offset + 30 + sum(struct.unpack("<26xHH", self._read(info.header_offset, 30)))

    def _read(self, start: int, length: int) -> bytes:
        with self._lock:  # several threads may ask one book
            self.file.seek(start)
            data = self.file.read(length)
        if len(data) != length:
            raise EOFError("the file ends before")
        return data

    def _check_meta(self, meta: dict[str, Any], info: BookInfo) -> None:
        tokens, size = info.tokens, meta["block_tokens"]
        counts = (tokens, info.characters, size, meta["blocks"])
        if not all(type(count) is int and count > 0 for count in counts) or size > BLOCK_TOKENS:
            raise ValueError("sizes out of range")
        if size % self.engine.config.stride:
            raise ValueError("blocks must begin where windows do")
        if not (isinstance(info.path, str) and isinstance(info.sha256, str)):
            raise TypeError("path and sha256 must be strings")
        if meta["blocks"] != -(-tokens // size) or len(self._archive.infolist()) != meta["blocks"] + 2:
            raise ValueError("the number of blocks disagrees with the number of tokens")
        self.size, self._count = size, meta["blocks"]

    def blocks(self, report: Report | None = None, wants: Wants = every) -> Iterator[tuple[Block, Keys]]:
        assert self.info is not None
        end, following = 0, 0
        for number in filter(wants, range(self._count)):
            block, keys = self.block(number)
            try:
                end, following = end if number == following else block.offset, number + 1
                if not block.offset <= end <= block.offset + len(block.text) or (number == 0 and block.offset):
                    raise ValueError("the blocks' texts do not follow one another")
                end = block.offset + len(block.text)
                if number == self._count - 1 and end != self.info.characters:
                    raise ValueError("the blocks' texts disagree with the number of characters")
            except _DAMAGE as error:
                raise self._damaged() from error
            yield block, keys
            if report is not None:
                report(Progress(block.first + len(block.ids), block.first + len(block.ids), self.info.tokens))

    def texts(self, report: Report | None = None) -> Iterator[Block]:
        for block, _ in self.blocks(report):
            yield block

    def block(self, number: int) -> tuple[Block, Keys]:
        """One block, and its keys. Raises BookError."""
        try:
            return self._unpack(number)
        except _DAMAGE as error:
            raise self._damaged() from error

    def span(self, first: int, length: int) -> Block:
        """A block with all of ``length`` tokens from ``first`` on that the book has; no longer than a block."""
        number = first // self.size
        block, _ = self.block(number)
        beyond = first + length - block.first - len(block.ids)
        if beyond <= 0 or number + 1 == self._count:
            return block
        return self.block(number + 1)[0].after(block.tail(length - beyond))

    def key_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the file the ``codes`` and the ``scales`` of each block begin: two of (blocks,) int64."""
        places = []
        for number in range(self._count):
            start = self._place(self._archive.getinfo(_name(number)))
            (length,) = struct.unpack("<Q", self._read(start, 8))
            header = json.loads(self._read(start + 8, length))
            data = start + 8 + length
            places.append([data + header[name]["data_offsets"][0] for name in ("codes", "scales")])
        codes, scales = np.array(places, np.int64).T
        return codes, scales

    def _unpack(self, number: int) -> tuple[Block, Keys]:
        assert self.info is not None
        first, width = number * self.size, self.engine.width
        n = min(self.size, self.info.tokens - first)
        rows = half_windows(n, self.engine.config.stride)
        parts = load(self._member(_name(number), (n + rows) * (width + BYTES_PER_TOKEN) + META_BYTES))
        shapes = {"ids": (n,), "starts": (n,), "ends": (n,), "codes": (rows, width), "scales": (rows,)}
        if set(parts) != set(_KINDS) or any(parts[name].dtype != kind for name, kind in _KINDS.items()):
            raise ValueError("the parts of a block are others")
        if any(parts[name].shape != shape for name, shape in shapes.items()):
            raise ValueError("the parts of a block have other sizes")
        text = parts["text"].tobytes().decode("utf-8", "surrogatepass")
        ids, starts, ends = parts["ids"], parts["starts"].astype(np.int64), parts["ends"].astype(np.int64)
        offset, marks = json.loads(parts["marks"].tobytes())
        marks = tuple(Mark(*mark) for mark in marks)
        if _name(number) not in self._sound:
            if ids.min() < 0 or ids.max() >= self.engine.tokenizer.vocab_size or not np.isfinite(parts["scales"]).all():
                raise ValueError("tokens or keys out of range")
            _check_places(starts, ends, text, offset, marks)
            self._sound.add(_name(number))
        block = Block(first, ids, starts + offset, ends + offset, text, offset, marks)
        return block, Keys(torch.from_numpy(parts["codes"]), torch.from_numpy(parts["scales"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Copy to ``path``, which is only ever seen whole. Raises BookError where it cannot be written."""
        with written_aside(path, BookError) as part, part.open("wb") as target, self._lock:
            self.file.seek(0)
            shutil.copyfileobj(self.file, target, 1 << 20)

    def close(self) -> None:
        self._archive.close()
        self.file.close()

    def __enter__(self) -> StoredSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_places(
    starts: NDArray[np.int64], ends: NDArray[np.int64], text: str, offset: int, marks: tuple[Mark, ...]
) -> None:
    """Raise ValueError where a block's tokens do not lie in its text, in order, or its marks are none."""
    if starts[0] < 0 or ends[-1] > len(text) or (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        raise ValueError("tokens lie outside the text")
    if (starts > ends).any():
        raise ValueError("a token ends before it starts")
    if type(offset) is not int or offset < 0 or not all(_is_mark(mark) for mark in marks):
        raise ValueError("an offset or mark is none")
    if not marks or marks[0].start > offset or sorted(marks, key=_start) != list(marks):
        raise ValueError("the marks of pages are out of order")


def _start(mark: Mark) -> int:
    return mark.start


def _is_mark(mark: Mark) -> bool:
    page = mark.page is None or type(mark.page) is int
    names = all(name is None or isinstance(name, str) for name in (mark.section, mark.label))
    return type(mark.start) is int and page and names


def store(source: Source, engine: Engine, name: str, report: Report | None = None) -> StoredSource:
    """Read a book into a temporary file, which is gone when it is closed, even if the process is killed."""
    file = tempfile.TemporaryFile(prefix="mamba-esi-")  # noqa: SIM115 - the source that is returned closes it
    try:
        write(source, engine, file, report)
        return StoredSource(file, engine, name)
    except BaseException:
        file.close()
        raise


def open_stored(path: str | os.PathLike[str], engine: Engine) -> StoredSource:
    """Open a saved book. Raises BookError."""
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - the source that is returned closes it
    except OSError as error:
        raise BookError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    try:
        return StoredSource(file, engine, os.fspath(path))
    except BaseException:
        file.close()
        raise
