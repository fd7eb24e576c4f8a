"""EPUB to text: chapters in reading order, with titles from the table of contents. Nothing is written to disk.

XML is read with the HTML parser, which expands no entities.
"""

from collections.abc import Iterator
from posixpath import dirname, join, normpath
from urllib.parse import unquote

from mamba_ssm.errors import BookError
from mamba_ssm.text.archive import Archive, attribute, local
from mamba_ssm.text.html import html_pieces
from mamba_ssm.text.piece import Piece, title

CONTAINER = "META-INF/container.xml"

_CHAPTER_TYPES = ("application/xhtml+xml", "text/html", "application/xml", "text/xml")
_FONT_SCRAMBLING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def epub_pieces(archive: Archive) -> Iterator[Piece]:
    """Pieces of an EPUB; one chapter at a time is in memory."""
    package = next((attribute(node, "full-path") for node in archive.nodes(CONTAINER, "rootfile")), "")
    if package not in archive:
        raise BookError("an EPUB without its package file; get the book again")
    chapters, contents = _package(archive, package)
    if locked := _locked(archive).intersection(chapters):
        raise BookError(f"protected by DRM ({len(locked)} chapters encrypted); get a copy without DRM")
    titles, pages = _contents(archive, contents)
    section = label = None
    for chapter in chapters:
        names, labels = titles.get(chapter, {}), pages.get(chapter, {})
        if section and "" not in names:  # a chapter in several files: the later ones carry on
            names = {"": section, **names}
        if label and "" not in labels:
            labels = {"": label, **labels}
        for piece in html_pieces(archive.markup(chapter), names, labels):
            section, label = piece.section, piece.label
            yield piece
        yield Piece("\n", section=section, label=label)


def _resolve(base: str, href: str) -> tuple[str, str]:
    """The member that a link points at, and the fragment in it."""
    target, _, fragment = href.partition("#")
    return normpath(join(dirname(base), unquote(target))) if target else base, unquote(fragment)


def _package(archive: Archive, package: str) -> tuple[list[str], str]:
    """Chapters in reading order, and the table of contents ("" when there is none)."""
    items: dict[str, str] = {}
    types: dict[str, str] = {}
    order: list[str] = []
    navigation = ncx = ""
    for node in archive.nodes(package, "item", "spine", "itemref"):
        if local(node) == "item":
            name, _ = _resolve(package, attribute(node, "href"))
            items[attribute(node, "id")], types[name] = name, attribute(node, "media-type").lower()
            if "nav" in attribute(node, "properties").split():
                navigation = name
            elif types[name] == "application/x-dtbncx+xml":
                ncx = name
        elif local(node) == "itemref":
            order.append(attribute(node, "idref"))
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


_Places = dict[str, dict[str, str]]  # names by member, then by fragment, "" for the member's start


def _contents(archive: Archive, contents: str) -> tuple[_Places, _Places]:
    """Titles of the table of contents, and numbers of the pages that the book has in print."""
    titles: _Places = {}
    pages: _Places = {}
    if not contents:
        return titles, pages
    label, names = "", titles
    for node in archive.nodes(contents, "nav", "a", "text", "content", "pagelist"):
        tag = local(node)
        if tag in ("nav", "pagelist"):
            # The first list is the table of contents; lists of pages, of landmarks and of figures follow.
            if tag == "pagelist" or "page-list" in attribute(node, "epub:type").split():
                names = pages
            elif titles:
                names = {}
            continue
        if tag == "text":
            label = node.text()
            continue
        href = attribute(node, "src" if tag == "content" else "href")
        name = title(node.text() if tag == "a" else label)
        if href and name:
            member, fragment = _resolve(contents, href)
            names.setdefault(member, {}).setdefault(fragment, name)
    return titles, pages


def _locked(archive: Archive) -> set[str]:
    """Members that are encrypted; scrambled fonts do not count."""
    if "META-INF/encryption.xml" not in archive:
        return set()
    locked, method = set(), ""
    for node in archive.nodes("META-INF/encryption.xml", "encrypteddata", "encryptionmethod", "cipherreference"):
        if local(node) == "encrypteddata":
            method = ""
        elif local(node) == "encryptionmethod":
            method = method or attribute(node, "algorithm")
        elif method not in _FONT_SCRAMBLING:
            locked.add(normpath(unquote(attribute(node, "uri"))))
    return locked
