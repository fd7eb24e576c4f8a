"""Files that were sent to the server, and the reading of them: one at a time, in a thread of its own."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from mamba_ssm.book import Shelf, ShelfBook
from mamba_ssm.book.source import Progress
from mamba_ssm.errors import MambaESIError
from mamba_ssm.utils.files import CHUNK_BYTES

log = logging.getLogger("mamba_esi.server")
PREFIX, DIGITS = "file-", 16
NAME_BYTES = 120
BROKEN_OFF = "the reading was broken off: upload the file again"
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\u202a-\u202e\u2066-\u2069]')  # some steer terminals, or turn names round
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Upload:
    """A file that was sent. ``book``: the id of what it is on the shelf, None until it is read."""

    id: str
    path: Path
    bytes: int
    created: int
    status: Literal["uploaded", "processed", "error"]
    details: str | None
    book: str | None
    tokens: int
    tokens_per_second: float
    share: float | None


@dataclass
class _Reading:
    """How far the reading of a file is."""

    seconds: float = 0.0
    progress: Progress = field(default_factory=lambda: Progress(0, 0, None))
    failure: str | None = None


class _Stopped(Exception):
    """The server goes down."""


class Uploads:
    """The files in a folder beside the shelf's. They are kept: a page of a PDF is drawn from its file."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.folder = shelf, shelf.folder / "uploads"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._readings: dict[str, _Reading] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "reading")
        self._closing = threading.Event()

    def receive(self, file: BinaryIO, name: str) -> Upload:
        """Keep a file, and have it read. The same content is the same upload, and is not read twice."""
        part = self.folder / f".{secrets.token_hex(8)}.part"
        digest = hashlib.sha256()
        try:
            with part.open("xb") as copy:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    copy.write(chunk)
            number = digest.hexdigest()[:DIGITS]
            with self._lock:
                path = self._path(number)
                if path is None:
                    path = self.folder / number / safe_name(name)
                    path.parent.mkdir(exist_ok=True)
                    part.replace(path)
                known = self._readings.get(number)
                if (known is None or known.failure) and self._book(number) is None:
                    self._readings[number] = _Reading()
                    self._pool.submit(self._read, number, path, self._readings[number])
        finally:
            part.unlink(missing_ok=True)
        return self._upload(number, path)

    def list(self) -> list[Upload]:
        """All files, the oldest first."""
        found = [(number.name, path) for number in self.folder.iterdir() if (path := self._path(number.name))]
        return sorted((self._upload(*each) for each in found), key=lambda upload: (upload.created, upload.id))

    def get(self, key: str) -> Upload | None:
        """A file by its id; None where there is none."""
        number = key.removeprefix(PREFIX)
        if number == key or not re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", number):
            return None
        path = self._path(number)
        return None if path is None else self._upload(number, path)

    def of(self, book: ShelfBook) -> Upload | None:
        """The file that a book was read from, where that was uploaded."""
        upload = self.get(PREFIX + book.id)
        return upload if upload is not None and os.fspath(upload.path) == book.path else None

    def delete(self, upload: Upload) -> None:
        """Remove a file that is not being read, and the book that was read from it."""
        number = upload.id.removeprefix(PREFIX)
        for book in self.shelf.books():
            if book.id == number and self.of(book) is not None:
                self.shelf.remove(book.id)
        shutil.rmtree(upload.path.parent)
        self._readings.pop(number, None)

    def close(self) -> None:
        """Stop reading; what is half read is dropped."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def _path(self, number: str) -> Path | None:
        """The one file of an upload."""
        home = self.folder / number
        return next(home.iterdir(), None) if home.is_dir() else None

    def _book(self, number: str) -> str | None:
        return next((book.id for book in self.shelf.books() if book.id == number), None)

    def _upload(self, number: str, path: Path) -> Upload:
        reading, book = self._readings.get(number, _Reading(failure=BROKEN_OFF)), self._book(number)
        details = None if book else reading.failure
        done, stat = reading.progress, path.stat()
        return Upload(
            PREFIX + number,
            path,
            stat.st_size,
            int(stat.st_mtime),
            "processed" if book else "error" if details else "uploaded",
            details,
            book,
            done.tokens,
            done.tokens / reading.seconds if reading.seconds else 0.0,
            done.bytes / done.total if done.total else None,
        )

    def _read(self, number: str, path: Path, reading: _Reading) -> None:
        def report(progress: Progress) -> None:
            if self._closing.is_set():
                raise _Stopped
            reading.progress, reading.seconds = progress, time.monotonic() - started

        started = time.monotonic()
        try:
            self.shelf.add(path, report)
        except _Stopped:
            reading.failure = BROKEN_OFF
        except MambaESIError as error:
            reading.failure = str(error).replace(os.fspath(path), path.name)
        except Exception:
            log.exception("reading an upload failed")
            reading.failure = "the server failed to read it: its log says why"


def safe_name(name: str) -> str:
    """A name that is one on every file system, and no path: from whatever a client calls its file."""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    name = _UNSAFE.sub("", name).strip(". ")
    stem, suffix = os.path.splitext(name)
    suffix = suffix.encode("utf-8", "ignore")[:16].decode("utf-8", "ignore")
    stem = stem.encode("utf-8", "ignore")[: NAME_BYTES - len(suffix.encode())].decode("utf-8", "ignore").rstrip(". ")
    if not stem or _DEVICES.match(stem):
        stem = f"book {stem}".strip()
    return stem + suffix
