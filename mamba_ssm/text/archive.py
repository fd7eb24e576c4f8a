"""Zip archives from anywhere: an archive's own figures are never trusted, and nothing is written to disk.

What is read is counted, and bounded by member, by ratio and in all.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_ssm.errors import BookError
from mamba_ssm.text.encoding import decode_markup
from mamba_ssm.text.html import DOCUMENT_BYTES, parse

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

ARCHIVE_BYTES = 512 << 20
ARCHIVE_MEMBERS = 20_000
RATIO = 100  # prose compresses 3 times, repetitive tables 20 times, a bomb 1,000 times
RATIO_FREE_BYTES = 4 << 20  # a small member may compress as well as it likes
CHUNK_BYTES = 1 << 18

_SELF_CLOSED = re.compile(r"<(?!(?:area|base|br|col|hr|img|input|link|meta|wbr)\b)([A-Za-z][\w:.-]*)(\s[^<>]*)?/>")


class Archive:
    """A zip file whose members are read within bounds, every failure a BookError."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BookError("a truncated or damaged EPUB or .docx (zip) file; download it again") from error
        self.members = {info.filename: info for info in self.zip.infolist()}
        if len(self.zip.infolist()) > ARCHIVE_MEMBERS:
            self.zip.close()
            raise BookError(
                f"more than {ARCHIVE_MEMBERS} files in one book; this looks like a zip bomb, so get the book elsewhere"
            )

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def chunks(self, name: str) -> Iterator[bytes]:
        """One member, in chunks that are counted."""
        info = self.members[name]
        if info.flag_bits & 1:
            raise BookError("an encrypted zip file; unpack it with its password and zip it without one")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BookError("a zip file compressed as no book may be; unpack it and zip it again with deflate")
        size = 0
        try:
            with self.zip.open(info) as file:
                while chunk := file.read(CHUNK_BYTES):
                    size += len(chunk)
                    self.read += len(chunk)
                    if (
                        size > DOCUMENT_BYTES
                        or self.read > ARCHIVE_BYTES
                        or size > max(RATIO_FREE_BYTES, RATIO * info.compress_size)
                    ):
                        raise BookError(
                            f"{name!r} unpacks to too much; this looks like a zip bomb, so get the book elsewhere"
                        )
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise BookError(f"{name!r} in the file is damaged; download the book again") from error

    def markup(self, name: str) -> str:
        """One XHTML or XML member as text that an HTML parser reads alike: `<title/>` would swallow the rest."""
        return _SELF_CLOSED.sub(r"<\1\2></\1>", decode_markup(b"".join(self.chunks(name))))

    def nodes(self, name: str, *tags: str) -> Iterator[LexborNode]:
        """Elements of an XML member by local name, in document order."""
        root = parse(self.markup(name))
        for node in root.traverse() if root is not None else ():
            if local(node) in tags:
                yield node


def local(node: LexborNode) -> str:
    """An element's name without its prefix."""
    return (node.tag or "").rpartition(":")[2]


def attribute(node: LexborNode, name: str) -> str:
    """An attribute, empty where there is none."""
    return node.attributes.get(name) or ""
