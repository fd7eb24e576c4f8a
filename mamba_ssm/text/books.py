"""The door to books: any supported file to pieces of text."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mamba_ssm.errors import BookError
from mamba_ssm.text.epub import read_epub
from mamba_ssm.text.html import read_html
from mamba_ssm.text.pdf import HEAD, is_pdf, read_pdf
from mamba_ssm.text.piece import Piece, pack
from mamba_ssm.text.plain import read_markdown, read_text

Reader = Callable[[Path], Iterator[Piece]]

_BY_SUFFIX: dict[str, Reader] = {
    ".pdf": read_pdf,
    ".epub": read_epub,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_text,
}
SUFFIXES = frozenset(_BY_SUFFIX)
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)


def read_pieces(path: str | os.PathLike[str]) -> Iterator[Piece]:
    """Stream a book as pieces of at most 32,768 characters; the book's text is all of them joined.

    Reads .txt, .md, .html, .pdf and .epub, told by content first and by suffix second. The same file always gives the
    same pieces. Memory is bounded for text and Markdown, by a page for PDF, a chapter for EPUB, a document for HTML.

    Raises BookError, as late as the damaged place is reached, when the file is missing, a folder, empty, encrypted,
    scanned without a text layer, damaged, or not a book at all.
    """
    path = Path(path)
    blank = True
    try:
        for piece in pack(_reader(path)(path)):
            blank = blank and piece.text.isspace()
            yield piece
        if blank:
            raise BookError("nothing but white space; give a file with text in it")
    except OSError as error:
        raise BookError(
            _line(path, f"cannot be read ({error.strerror or error}); check the path and its rights")
        ) from error
    except BookError as error:
        raise BookError(_line(path, str(error))) from error


def _line(path: Path, what: str) -> str:
    """The readers say what is wrong; the door says of which file, in one line whatever its name holds."""
    return "".join(char if char.isprintable() else "?" for char in f"{path}: {what}")


def _reader(path: Path) -> Reader:
    if not path.exists():
        raise BookError("no such file; check the path")
    if path.is_dir():
        raise BookError("a folder; give one file (.txt, .md, .html, .pdf or .epub)")
    if not path.is_file():
        raise BookError("not a regular file; save it to disk first")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BookError("the file is empty (0 bytes); download it again")
    if is_pdf(head):
        return read_pdf
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return read_epub
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        return read_html if _HTML.match(head) else read_text
    return _BY_SUFFIX[suffix]
