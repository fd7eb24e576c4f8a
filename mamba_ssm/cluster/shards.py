"""Where a library lies: a folder of shards, on a disk or in an object storage.

A book belongs to the shard that its sha256 says. What was read of it stands in the shard's folder ``read`` as two files
and a row, as `mamba_ssm.book.shelving` writes them; the row comes last, so that a book is there with its row or not at
all. On a disk the shards' shelves take them in from there at the end. In an object storage they stay, and whoever
answers copies a shard to a disk of its own, and takes them in there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from mamba_ssm.book import Engine, Shelf
from mamba_ssm.book.library import BOOKS
from mamba_ssm.book.shelving import ESI, ID_DIGITS, INDEX, ROW, read_into, read_row, write_row
from mamba_ssm.book.source import sha256_of
from mamba_ssm.book.store import open_stored
from mamba_ssm.errors import ClusterError

HEAD, HEAD_BYTES, VERSION = "library.json", 4096, 1
READ = "read"
MOST = 10_000  # shards
OBJECT_STORES = ("s3", "gcs", "abfs")  # where a file is seen when it is whole


@dataclass(frozen=True)
class Shards:
    """``count`` shards at ``url``, an absolute path or a URL, read with the model of that fingerprint."""

    url: str
    count: int
    fingerprint: str

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Shards:
        """A library that was begun. Raises ClusterError."""
        url = _absolute(url)
        with _mendable(url):
            where, root = _storage(url)
            try:
                with where.open_input_stream(f"{root}/{HEAD}") as file:
                    head = json.loads(file.read(HEAD_BYTES))
                count, fingerprint = head["shards"], head["fingerprint"]
            except FileNotFoundError:
                raise ClusterError(f"{url}: no library is there; `mamba-esi library read` makes one") from None
            except (ValueError, TypeError, KeyError) as error:
                raise ClusterError(f"{url}/{HEAD}: damaged; give another folder") from error
        if head.get("version") != VERSION:
            raise ClusterError(f"{url}: a library of another version of mamba-esi; use that, or another folder")
        if type(count) is not int or not 1 <= count <= MOST or not isinstance(fingerprint, str):
            raise ClusterError(f"{url}/{HEAD}: damaged; give another folder")
        return cls(url, count, fingerprint)

    @classmethod
    def begin(cls, url: str | os.PathLike[str], count: int | None, fingerprint: str) -> Shards:
        """The library there, or a new one; by default of 8 shards. Raises ClusterError where it has others."""
        url = _absolute(url)
        if count is not None and not 1 <= count <= MOST:
            raise ValueError(f"shards must be 1 to {MOST:,}")
        with _mendable(url):
            where, root = _storage(url)
            if where.get_file_info(f"{root}/{HEAD}").type == fs.FileType.NotFound:
                there = cls(url, 8 if count is None else count, fingerprint)
                where.create_dir(root, recursive=True)
                head = {"version": VERSION, "shards": there.count, "fingerprint": fingerprint}
                with tempfile.TemporaryDirectory(prefix=".mamba-esi-", dir=root if there.in_place else None) as scratch:
                    file = Path(scratch) / HEAD
                    file.write_text(json.dumps(head), encoding="utf-8")
                    there._put(file, HEAD)
                return there
        there = cls.open(url)
        if count not in (None, there.count):
            raise ClusterError(f"{url}: has {there.count} shards; leave --shards out, or give another --out")
        if there.fingerprint != fingerprint:
            raise ClusterError(f"{url}: read with another model; pass the same --model and --esi, or another --out")
        return there

    @property
    def in_place(self) -> bool:
        """Whether it was given by a path, so that its shards are opened where they lie."""
        return "://" not in self.url

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        return _storage(self.url)

    def folder(self, shard: int) -> Path:
        """Of a library that is opened in place."""
        return Path(self._place[1]) / _name(shard)

    def add(self, path: Path, engine: Engine) -> Added:
        """Read a book, unless it was read. Raises BookError, ShelfError, ClusterError."""
        sha256 = sha256_of(path)
        name, shard = f"{sha256[:ID_DIGITS]}-{self.fingerprint[:ID_DIGITS]}", int(sha256[:8], 16) % self.count
        with _mendable(self.url), self._scratch(shard) as scratch:
            there = self._there(shard, name, scratch, engine)
            if there is not None:
                return Added(sha256, shard, there, False)
            book, sections = read_into(scratch, name, path, sha256, engine)
            write_row(scratch / f"{name}{ROW}", book, sections)
            for suffix in (ESI, INDEX, ROW):
                self._put(scratch / f"{name}{suffix}", f"{_name(shard)}/{READ}/{name}{suffix}")
        return Added(sha256, shard, book.tokens, True)

    @contextmanager
    def _scratch(self, shard: int) -> Iterator[Path]:
        """A folder to write to; on the library's own disk, so that what is written need not be copied."""
        beside = self.folder(shard) / READ if self.in_place else None
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mamba-esi-", dir=beside) as folder:
            yield Path(folder)

    def _there(self, shard: int, name: str, scratch: Path, engine: Engine) -> int | None:
        """Tokens of a book that was read before."""
        where, root = self._place
        row = f"{root}/{_name(shard)}/{READ}/{name}{ROW}"
        if where.get_file_info(row).type == fs.FileType.File:
            fs.copy_files(row, os.fspath(scratch / f"{name}{ROW}"), where, fs.LocalFileSystem())
            return read_row(scratch / f"{name}{ROW}")[0].tokens
        if self.in_place and (kept := self.folder(shard) / BOOKS / f"{name}{ESI}").exists():
            with open_stored(kept, engine) as source:
                assert source.info is not None
                return source.info.tokens
        return None

    def _put(self, file: Path, name: str) -> None:
        """Put a file there, which is only ever seen whole."""
        where, root = self._place
        if self.in_place:
            file.replace(f"{root}/{name}")
            return
        folder, _, last = name.rpartition("/")
        target = f"{root}/{name}"
        where.create_dir(f"{root}/{folder}", recursive=True)
        aside = target if where.type_name in OBJECT_STORES else f"{root}/{folder}/.{last}.{secrets.token_hex(4)}.part"
        fs.copy_files(os.fspath(file), aside, fs.LocalFileSystem(), where)
        if aside != target:
            where.move(aside, target)

    def finish(self, engine: Engine) -> None:
        """Put on the shelves what was read; not while anyone reads. Does nothing in an object storage."""
        if not self.in_place:
            return
        for shard in range(self.count):
            with Shelf.open(self.folder(shard), engine) as shelf:
                shelf.take_in(self.folder(shard) / READ)
            # What is left are files of a process that was killed.
            shutil.rmtree(self.folder(shard) / READ, ignore_errors=True)

    def shelf(self, shard: int, engine: Engine, scratch: Path) -> Shelf:
        """A shard's shelf, where it lies or copied to ``scratch``. Close it. Raises ShelfError, ClusterError."""
        if self.in_place:
            if not self.folder(shard).is_dir():
                raise ClusterError(
                    f"{self.folder(shard)}: not on this machine; give a URL, or read the library to its end"
                )
            return Shelf.open(self.folder(shard), engine)
        where, root = self._place
        source = f"{root}/{_name(shard)}/{READ}"
        (scratch / READ).mkdir()
        with _mendable(self.url):
            if where.get_file_info(source).type == fs.FileType.Directory:
                fs.copy_files(source, os.fspath(scratch / READ), where, fs.LocalFileSystem())
        shelf = Shelf.open(scratch, engine)
        shelf.take_in(scratch / READ)
        return shelf


@dataclass(frozen=True)
class Added:
    """A book in a library. ``new``: it had to be read."""

    sha256: str
    shard: int
    tokens: int
    new: bool


def _absolute(url: str | os.PathLike[str]) -> str:
    """A path as all processes understand it, or a URL."""
    url = os.fspath(url)
    return url if "://" in url else os.path.abspath(url)


def _name(shard: int) -> str:
    return f"shard-{shard:04}"


def _storage(url: str) -> tuple[fs.FileSystem, str]:
    """A file system, and the folder in it."""
    if "://" not in url:
        return fs.LocalFileSystem(), url
    where, root = fs.FileSystem.from_uri(url)
    return where, root.rstrip("/")


@contextmanager
def _mendable(url: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = str(error).partition("\n")[0]
        raise ClusterError(f"{url}: cannot be used ({why}); check the address") from error
