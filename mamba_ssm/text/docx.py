"""Word's .docx to text, a paragraph at a time (ECMA-376 part 1, sections 17.3 to 17.7).

The XML is streamed through expat, so that memory does not grow with the document. A document type, which no .docx has,
is refused: without one there are no entities to expand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from xml.parsers import expat

from mamba_ssm.errors import BookError
from mamba_ssm.text.archive import Archive, attribute
from mamba_ssm.text.piece import Piece, title

RELATIONS = "_rels/.rels"
DEPTH = 512  # text boxes in tables in tables: Word's own files stay below a hundred

_HEADING = re.compile(r"(?:heading \d|title)$")
_CONTENTS = re.compile(r"toc \d|toc heading$")  # names of headings with their pages: the headings come again
# Text that was moved away, and a second version of the same drawing for older programs.
_DROPPED = frozenset(("moveFrom", "Fallback"))
Start = Callable[[str, dict[str, str]], None]

_SPACE = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def main_part(archive: Archive) -> str:
    """The member that holds the document's text; empty where the archive is no .docx."""
    if RELATIONS not in archive:
        return ""
    for node in archive.nodes(RELATIONS, "relationship"):
        name = attribute(node, "target").lstrip("/")
        if attribute(node, "type").endswith("/officeDocument") and name.startswith("word/") and name in archive:
            return name
    return ""


def docx_pieces(archive: Archive, main: str) -> Iterator[Piece]:
    """Pieces of a .docx: its paragraphs, a table a line a row, then its footnotes and endnotes."""
    styles = _styles(archive)
    for name in (main, "word/footnotes.xml", "word/endnotes.xml"):
        if name in archive:
            document = _Document(styles)
            for _ in _parsed(archive, name, document.start, document.end, document.characters):
                yield from document.done
                document.done.clear()
            yield from document.done


def _parsed(
    archive: Archive, name: str, start: Start, end: Callable[[str], None], characters: Callable[[str], None]
) -> Iterator[None]:
    """Parse a member, telling after every chunk of it."""
    depth = 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise BookError(f"{name!r} is nested too deeply; save the document again as .docx")
        start(_local(tag), {_local(key): value for key, value in attributes.items()})

    def finish(tag: str) -> None:
        nonlocal depth
        depth -= 1
        end(_local(tag))

    def refuse(*_: object) -> None:
        raise BookError(f"{name!r} declares a document type, as no .docx may; save the document again as .docx")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = begin, finish
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, refuse
    try:
        for chunk in archive.chunks(name):
            parser.Parse(chunk)
            yield
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two for encodings it does not know
        raise BookError(f"{name!r} in the file is damaged; download the book again") from error


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _styles(archive: Archive) -> dict[str, str]:
    """The name of each paragraph style in lower case, by its id; a style based on a heading has the heading's."""
    names: dict[str, str] = {}
    based: dict[str, str] = {}
    style = ""

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal style
        if tag == "style":
            style = attributes.get("styleId", "")
        elif tag == "name" and style:
            names[style] = attributes.get("val", "").lower()  # the same in every language, unlike ids
        elif tag == "basedOn" and style:
            based[style] = attributes.get("val", "")

    def ignore(*_: object) -> None:
        pass

    if "word/styles.xml" in archive:
        for _ in _parsed(archive, "word/styles.xml", start, ignore, ignore):
            pass
    for style in names:
        parent, seen = style, {style}
        while not _HEADING.match(names.get(parent, "")) and (parent := based.get(parent, "")) not in seen:
            seen.add(parent)
        if _HEADING.match(names.get(parent, "")):
            names[style] = names[parent]
    return names


class _Document:
    """What the parser reports of a part, to pieces in ``done``. Paragraphs lie in others where there are text boxes."""

    def __init__(self, styles: dict[str, str]) -> None:
        self.styles, self.done = styles, list[Piece]()
        self.section: str | None = None
        self.paragraphs: list[tuple[list[str], str]] = []  # those that are open: text and style
        self.tables: list[list[str]] = []  # of each open table the cells of its row so far
        self.cells: list[list[str]] = []  # of each open cell its paragraphs so far
        self.dropped = 0
        self.text = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in _DROPPED or self.dropped:
            self.dropped += 1
        elif tag == "p":
            self.paragraphs.append(([], ""))
        elif tag == "tbl":
            self.tables.append([])
        elif tag == "tc":
            self.cells.append([])
        elif self.paragraphs:
            parts, style = self.paragraphs[-1]
            if tag == "pStyle":
                self.paragraphs[-1] = (parts, self.styles.get(attributes.get("val", ""), style))
            elif tag == "outlineLvl" and attributes.get("val") != "9":  # 9 is the level of plain text
                self.paragraphs[-1] = (parts, "heading 1")
            elif tag in _SPACE and "pos" not in attributes:  # one that is typed, not a stop that is set
                parts.append(_SPACE[tag])
            self.text = tag == "t"

    def characters(self, data: str) -> None:
        if self.text and not self.dropped:
            self.paragraphs[-1][0].append(data)

    def end(self, tag: str) -> None:
        if self.dropped:
            self.dropped -= 1
            return
        self.text = self.text and tag != "t"
        if tag == "p":
            parts, style = self.paragraphs.pop()
            self._paragraph("".join(parts).strip("\n").rstrip(), style)
        elif tag == "tc":
            cell = "\n".join(self.cells.pop())
            if self.tables:
                self.tables[-1].append(cell)
        elif tag == "tr" and self.tables:
            cells = self.tables[-1]
            # A single cell is a frame around a listing as often as a row, and keeps its lines.
            self._put(cells[0] if len(cells) == 1 else " | ".join(" ".join(cell.split()) for cell in cells), "\n")
            cells.clear()
        elif tag == "tbl":
            self.tables.pop()
            if not self.tables:
                self.done.append(Piece("\n", section=self.section))

    def _paragraph(self, text: str, style: str) -> None:
        if not text.strip() or _CONTENTS.match(style):
            return
        if _HEADING.match(style):
            self.section = title(text)
        self._put(text, "\n\n")

    def _put(self, text: str, end: str) -> None:
        """Text into the cell that is open, else a piece of its own."""
        if self.cells:
            self.cells[-1].append(text)
        elif text.strip(" |"):
            self.done.append(Piece(text + end, section=self.section))
