"""A folder that is one book: its files, in the order of their chapters."""

from __future__ import annotations

import os
import re
from collections.abc import Container
from pathlib import Path

from mamba_ssm.errors import BookError

ENTRIES = 10_000  # files and folders, of any kind: a book has far fewer, a disk far more
_DIGITS = re.compile(r"(\d+)")
_SAVED_WITH_PAGE = ("_files", ".files")  # what browsers keep beside page.html: styles, scripts, advertisements


def folder_files(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files with these suffixes in a folder and those below it, "chapter 2" before "chapter 10".

    Left out: what is hidden or empty, what lies outside the folder by a link, and what a browser saved with a page.
    Raises BookError where there are no such files, or too many entries to be a book.
    """
    found: list[Path] = []
    entries, root = 0, folder.resolve()
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        entries += len(folders) + len(names)
        if entries > ENTRIES:
            raise BookError(f"a folder of more than {ENTRIES:,} files; give the folder of one book")
        pages = {Path(name).stem for name in names if name.lower().endswith((".html", ".htm"))}
        saved = {page + end for page in pages for end in _SAVED_WITH_PAGE}
        folders[:] = [name for name in folders if not name.startswith(".") and name not in saved]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in suffixes and path.resolve().is_relative_to(root):
                found += [path] if path.is_file() and path.stat().st_size else []
    if not found:
        raise BookError("a folder without files of a book; give one with .md, .html, .txt, .tex or .pdf files")
    return sorted(found, key=lambda path: [_natural(part) for part in path.relative_to(folder).parts])


def _refuse(error: OSError) -> None:
    raise error


def _natural(name: str) -> tuple[list[str | int], str]:
    """Numbers in a name compare as numbers."""
    parts = _DIGITS.split(name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
