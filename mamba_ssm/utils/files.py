"""Files that are only ever seen whole, and what they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mamba_ssm.errors import MambaESIError

CHUNK_BYTES = 1 << 20


@contextmanager
def written_aside(path: str | os.PathLike[str], error: type[MambaESIError] = MambaESIError) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which takes its place at the end. Raises ``error`` for an OSError."""
    path = Path(path)
    # The suffix stays, for those who go by it.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as failure:
        why = failure.strerror or failure
        raise error(f"{path}: cannot be written ({why}); check the folder and its space") from failure


def sha256_of_file(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
