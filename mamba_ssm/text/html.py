"""HTML to text: block elements end lines, <pre> keeps its own, a table gives a line a row, headings name sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_ssm.errors import BookError
from mamba_ssm.text.encoding import check_text, decode_markup
from mamba_ssm.text.piece import Piece, title

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

DOCUMENT_BYTES = 64 << 20  # the parsed tree takes some ten times the document

_DROPPED = frozenset(("head", "script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "audio"))
_DROPPED |= {"video", "canvas", "select", "annotation", "annotation-xml", "rt", "rp"}
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_PARAGRAPHS = _HEADINGS | {"p", "pre", "blockquote", "ul", "ol", "dl", "table", "figure", "hr", "section", "article"}
_LINES = frozenset(("div", "li", "dt", "dd", "tr", "caption", "address", "center", "details", "summary", "figcaption"))
_LINES |= {"aside", "header", "footer", "main", "form", "fieldset"}
_CELLS = frozenset(("td", "th"))
_NONE: Mapping[str, str] = {}
_SPACES = re.compile(r"[ \t\n\f\r]+")  # HTML's own white space: a no-break space stays


def read_html(path: Path) -> Iterator[Piece]:
    """Pieces of an HTML file. Before the first heading the section is the document's title."""
    if path.stat().st_size > DOCUMENT_BYTES:
        raise BookError(f"HTML above {DOCUMENT_BYTES >> 20} MB; split the file or convert it to text first")
    markup = decode_markup(path.read_bytes())
    check_text(markup)
    yield from html_pieces(markup)


def html_pieces(markup: str, titles: Mapping[str, str] = _NONE, pages: Mapping[str, str] = _NONE) -> Iterator[Piece]:
    """Pieces of one document. `titles` names sections by the id of the element that opens them, "" for the start;
    `pages` gives the labels of printed pages alike.
    """
    root = parse(markup)
    head = root.css_first("title") if root is not None else None
    if root is not None:
        start = titles.get("") or (title(head.text()) if head is not None else None)
        yield from _Walk(start, titles, pages).pieces(root)


def parse(markup: str) -> LexborNode | None:
    """The root of a document; None when there is none. The parser accepts any text, and expands no entity of XML's."""
    from selectolax.lexbor import LexborHTMLParser

    return LexborHTMLParser(markup).root


class _Walk:
    """One pass over the tree, with what is pending between two runs of text."""

    def __init__(self, section: str | None, titles: Mapping[str, str], pages: Mapping[str, str]) -> None:
        self.section, self.titles = section, titles
        self.label, self.pages = pages.get(""), pages
        self.named = "" in titles  # the section was named from outside, and its own heading may follow
        self.heading: list[str] | None = None
        self.breaks = 0  # line feeds to write before the next text
        self.gap = ""  # what to write where there are none: nothing, a space, or a bar between cells
        self.begun = self.cell_start = False
        self.pre = 0

    def pieces(self, root: LexborNode) -> Iterator[Piece]:
        # An explicit stack: documents nest deeper than Python recurses. True marks the end of an element.
        stack: list[tuple[LexborNode, bool]] = [(root, False)]
        while stack:
            node, ended = stack.pop()
            tag = node.tag or ""
            if ended:
                self._end(tag)
                if tag in _HEADINGS:
                    yield from self._close_heading()
            elif node.is_text_node:
                if text := self._flow(node.text_content or ""):
                    if self.heading is not None:
                        self.heading.append(text)
                    else:
                        self.named = False
                        yield self._piece(text)
            elif node.is_element_node and tag not in _DROPPED:
                self._begin(node, tag)
                stack.append((node, True))
                child = node.last_child
                while child is not None:
                    stack.append((child, False))
                    child = child.prev
        yield from self._close_heading()
        if self.begun:
            yield self._piece("\n")

    def _piece(self, text: str) -> Piece:
        return Piece(text, section=self.section, label=self.label)

    def _begin(self, node: LexborNode, tag: str) -> None:
        if self.titles or self.pages:  # attributes cost a copy: look only where it can matter
            anchor = node.attributes.get("id") or ""
            self.label = self.pages.get(anchor, self.label) if anchor else self.label
            if anchor and anchor in self.titles:
                self.section, self.named = self.titles[anchor], True
        if tag in _HEADINGS and self.heading is None:
            self.heading = []
        elif tag == "br":
            self.breaks = self.breaks + 1 if self.pre else min(self.breaks + 1, 2)
        self.pre += tag == "pre"
        self._edge(tag)
        if tag in _CELLS:
            self.cell_start = True

    def _end(self, tag: str) -> None:
        self.pre -= tag == "pre"
        if tag in _CELLS:
            if not self.cell_start or not self.breaks:  # an empty cell leaves the row's own break
                self.breaks, self.gap = 0, " | "
            self.cell_start = False
        self._edge(tag)

    def _edge(self, tag: str) -> None:
        """The break at either end of a block; none where a block is the first thing in a table's cell."""
        if not self.cell_start:
            self.breaks = max(self.breaks, 2 if tag in _PARAGRAPHS else 1 if tag in _LINES else 0)

    def _close_heading(self) -> Iterator[Piece]:
        if self.heading:
            text = "".join(self.heading)
            if not self.named:
                self.section = title(text) or self.section
            self.named = False
            yield self._piece(text)
        self.heading = None

    def _flow(self, raw: str) -> str:
        """What a text node adds, after the breaks and spaces that were pending; the ones at its end stay pending."""
        if self.pre:
            text = raw.strip("\n")
            self.breaks += len(raw) - len(raw.lstrip("\n"))
            after, space = (len(raw) - len(raw.rstrip("\n")), "") if text else (0, "")
        else:
            flat = _SPACES.sub(" ", raw)
            text = flat.strip(" ") if flat.strip() else ""  # a no-break space alone fills an empty cell
            if flat.startswith(" ") and not self.gap:
                self.gap = " "
            after, space = 0, " " if flat.endswith(" ") else ""
        if not text:
            return ""
        lead = ("\n" * self.breaks or self.gap) if self.begun else ""
        self.breaks, self.gap, self.begun, self.cell_start = after, space, True, False
        return lead + text
