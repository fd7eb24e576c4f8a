"""EPUB to text: chapters in reading order, with titles from the table of contents. Nothing is written to disk.

An archive's own figures are never trusted: what is read is counted, and bounded by member, by ratio and in all.
XML is read with the HTML parser, which expands no entities.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mamba_ssm.errors import BookError
from mamba_ssm.text.encoding import decode_markup
from mamba_ssm.text.html import DOCUMENT_BYTES, html_pieces, parse
from mamba_ssm.text.piece import Piece, title

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

ARCHIVE_BYTES = 512 << 20
ARCHIVE_MEMBERS = 20_000
RATIO = 100  # prose compresses 3 times, repetitive tables 20 times, a bomb 1,000 times
RATIO_FREE_BYTES = 4 << 20  # a small member may compress as well as it likes
CHUNK_BYTES = 1 << 18

_CHAPTER_TYPES = ("application/xhtml+xml", "text/html", "application/xml", "text/xml")
_FONT_SCRAMBLING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_SELF_CLOSED = re.compile(r"<(?!(?:area|base|br|col|hr|img|input|link|meta|wbr)\b)([A-Za-z][\w:.-]*)(\s[^<>]*)?/>")


def read_epub(path: Path) -> Iterator[Piece]:
    """Pieces of an EPUB; one chapter at a time is in memory."""
    with _Archive(path) as archive:
        if "META-INF/container.xml" not in archive:
            raise BookError("a zip file but not an EPUB; unpack it and give the book inside")
        package = next(
            (_attribute(node, "full-path") for node in archive.nodes("META-INF/container.xml", "rootfile")), ""
        )
        if package not in archive:
            raise BookError("an EPUB without its package file; get the book again")
        chapters, contents = _package(archive, package)
        if locked := _locked(archive).intersection(chapters):
            raise BookError(f"protected by DRM ({len(locked)} chapters encrypted); get a copy without DRM")
        titles = _contents(archive, contents)
        section = None
        for chapter in chapters:
            names = titles.get(chapter, {})
            if section and "" not in names:  # a chapter in several files: the later ones carry on
                names = {"": section, **names}
            for piece in html_pieces(archive.markup(chapter), names):
                section = piece.section
                yield piece
            yield Piece("\n", section=section)


class _Archive:
    """A zip file whose members are read within bounds, every failure a BookError."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BookError("a truncated or damaged EPUB (zip) file; download it again") from error
        self.members = {info.filename: info for info in self.zip.infolist()}
        if len(self.zip.infolist()) > ARCHIVE_MEMBERS:
            self.zip.close()
            raise BookError(
                f"more than {ARCHIVE_MEMBERS} files in one EPUB; this looks like a zip bomb, so get the book elsewhere"
            )

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def bytes(self, name: str) -> bytes:
        """One member, read in chunks that are counted."""
        info = self.members[name]
        if info.flag_bits & 1:
            raise BookError("an encrypted zip file; unpack it with its password and zip it without one")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BookError("a zip file compressed as no EPUB may be; unpack it and zip it again with deflate")
        data = bytearray()
        try:
            with self.zip.open(info) as file:
                while chunk := file.read(CHUNK_BYTES):
                    data += chunk
                    self.read += len(chunk)
                    if (
                        len(data) > DOCUMENT_BYTES
                        or self.read > ARCHIVE_BYTES
                        or len(data) > max(RATIO_FREE_BYTES, RATIO * info.compress_size)
                    ):
                        raise BookError(
                            f"{name!r} unpacks to too much; this looks like a zip bomb, so get the book elsewhere"
                        )
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise BookError(f"{name!r} in the EPUB is damaged; download the book again") from error
        return bytes(data)

    def markup(self, name: str) -> str:
        """One XHTML or XML member as text that an HTML parser reads alike: `<title/>` would swallow the rest."""
        return _SELF_CLOSED.sub(r"<\1\2></\1>", decode_markup(self.bytes(name)))

    def nodes(self, name: str, *tags: str) -> "Iterator[LexborNode]":
        """Elements of an XML member by local name, in document order."""
        root = parse(self.markup(name))
        for node in root.traverse() if root is not None else ():
            if _local(node) in tags:
                yield node


def _local(node: "LexborNode") -> str:
    return (node.tag or "").rpartition(":")[2]


def _attribute(node: "LexborNode", name: str) -> str:
    return node.attributes.get(name) or ""


def _resolve(base: str, href: str) -> tuple[str, str]:
    """The member that a link points at, and the fragment in it."""
    target, _, fragment = href.partition("#")
    return normpath(join(dirname(base), unquote(target))) if target else base, unquote(fragment)


def _package(archive: _Archive, package: str) -> tuple[list[str], str]:
    """Chapters in reading order, and the table of contents ("" when there is none)."""
    items: dict[str, str] = {}
    types: dict[str, str] = {}
    order: list[str] = []
    navigation = ncx = ""
    for node in archive.nodes(package, "item", "spine", "itemref"):
        if _local(node) == "item":
            name, _ = _resolve(package, _attribute(node, "href"))
            items[_attribute(node, "id")], types[name] = name, _attribute(node, "media-type").lower()
            if "nav" in _attribute(node, "properties").split():
                navigation = name
            elif types[name] == "application/x-dtbncx+xml":
                ncx = name
        elif _local(node) == "itemref":
            order.append(_attribute(node, "idref"))
    chapters = list(dict.fromkeys(items[ref] for ref in order if ref in items))
    chapters = [
        name for name in chapters if types[name] in _CHAPTER_TYPES or name.endswith((".xhtml", ".html", ".htm"))
    ]
    missing = next((name for name in chapters if name not in archive), None)
    if missing is not None:
        raise BookError(f"the chapter {missing!r} is missing from the EPUB; get the book again")
    if not chapters:
        raise BookError("an EPUB that lists no chapters; get the book again or convert it to HTML")
    return chapters, next((name for name in (navigation, ncx) if name in archive), "")


def _contents(archive: _Archive, contents: str) -> dict[str, dict[str, str]]:
    """Titles of the table of contents: by member, then by fragment ("" for the member's start)."""
    titles: dict[str, dict[str, str]] = {}
    if not contents:
        return titles
    label = ""
    for node in archive.nodes(contents, "nav", "a", "text", "content"):
        tag = _local(node)
        if tag == "nav" and titles:
            break  # the first list is the table of contents; lists of pages and landmarks follow
        if tag == "text":
            label = node.text()
            continue
        href = _attribute(node, "src" if tag == "content" else "href")
        name = title(node.text() if tag == "a" else label)
        if href and name:
            member, fragment = _resolve(contents, href)
            titles.setdefault(member, {}).setdefault(fragment, name)
    return titles


def _locked(archive: _Archive) -> set[str]:
    """Members that are encrypted; scrambled fonts do not count."""
    if "META-INF/encryption.xml" not in archive:
        return set()
    locked, method = set(), ""
    for node in archive.nodes("META-INF/encryption.xml", "encrypteddata", "encryptionmethod", "cipherreference"):
        if _local(node) == "encrypteddata":
            method = ""
        elif _local(node) == "encryptionmethod":
            method = method or _attribute(node, "algorithm")
        elif method not in _FONT_SCRAMBLING:
            locked.add(normpath(unquote(_attribute(node, "uri"))))
    return locked
