"""The door to books: any supported file to pieces of text."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mamba_ssm.errors import BookError
from mamba_ssm.text.archive import Archive
from mamba_ssm.text.docx import docx_pieces, main_part
from mamba_ssm.text.epub import CONTAINER, epub_pieces
from mamba_ssm.text.folder import folder_files
from mamba_ssm.text.html import read_html
from mamba_ssm.text.latex import read_latex
from mamba_ssm.text.notebook import read_notebook
from mamba_ssm.text.pdf import HEAD, is_pdf, read_pdf
from mamba_ssm.text.piece import Piece, pack, title
from mamba_ssm.text.plain import read_markdown, read_rst, read_text

Reader = Callable[[Path], Iterator[Piece]]


def _read_zip(path: Path) -> Iterator[Piece]:
    with Archive(path) as archive:
        if CONTAINER in archive:
            yield from epub_pieces(archive)
        elif main := main_part(archive):
            yield from docx_pieces(archive, main)
        else:
            raise BookError("a zip file but neither an EPUB nor a .docx; unpack it and give the folder")


_BY_SUFFIX: dict[str, Reader] = {
    ".pdf": read_pdf,
    ".epub": _read_zip,
    ".docx": _read_zip,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".rst": read_rst,
    ".tex": read_latex,
    ".ipynb": read_notebook,
    ".txt": read_text,
}
SUFFIXES = frozenset(_BY_SUFFIX)
_OLD_WORD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the file format of Word before .docx, and of encrypted .docx
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)


def read_pieces(path: str | os.PathLike[str]) -> Iterator[Piece]:
    """Stream a book as pieces of at most 32,768 characters; the book's text is all of them joined.

    Reads .txt, .md, .rst, .html, .tex, .ipynb, .docx, .epub and .pdf, told by content first and by suffix second, and a
    folder of such files. The same book always gives the same pieces. Memory is bounded for text, Markdown, .rst and
    .docx, by some pages for PDF, a chapter for EPUB, a document for HTML, .tex and .ipynb.

    Raises BookError, as late as the damaged place is reached, when the book is missing, empty, encrypted, scanned
    without a text layer, damaged, or not a book at all.
    """
    path = Path(path)
    blank = True
    files = book_files(path)
    for file in files:
        try:
            for piece in pack(_reader(file)(file)):
                blank = blank and piece.text.isspace()
                # Where a file of several has no headings, its name is the best that can be cited.
                yield piece if piece.section or len(files) == 1 else replace(piece, section=title(file.stem))
            if len(files) > 1:
                yield Piece("\n")
        except OSError as error:
            raise _unreadable(file, error) from error
        except BookError as error:
            raise BookError(_line(file, str(error))) from error
    if blank:
        raise BookError(_line(path, "nothing but white space; give a file with text in it"))


def book_files(path: Path) -> list[Path]:
    """The files that a book is read from, in order: the file itself, or those of a folder. Raises BookError."""
    try:
        return folder_files(path, _BY_SUFFIX) if path.is_dir() else [path]
    except OSError as error:
        raise _unreadable(path, error) from error
    except BookError as error:
        raise BookError(_line(path, str(error))) from error


def _unreadable(path: Path, error: OSError) -> BookError:
    return BookError(_line(path, f"cannot be read ({error.strerror or error}); check the path and its rights"))


def _line(path: Path, what: str) -> str:
    """The readers say what is wrong; the door says of which file, in one line whatever its name holds."""
    return "".join(char if char.isprintable() else "?" for char in f"{path}: {what}")


def _reader(path: Path) -> Reader:
    if not path.exists():
        raise BookError("no such file; check the path")
    if not path.is_file():
        raise BookError("not a regular file; save it to disk first")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BookError("the file is empty (0 bytes); download it again")
    if is_pdf(head):
        return read_pdf
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip
    if head.startswith(_OLD_WORD):
        raise BookError("an old or encrypted Word document; save it as .docx without a password")
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        return read_html if _HTML.match(head) else read_text
    return _BY_SUFFIX[suffix]
