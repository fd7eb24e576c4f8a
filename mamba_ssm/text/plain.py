"""Plain text and Markdown, streamed: memory does not grow with the file."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mamba_ssm.text.encoding import file_encoding
from mamba_ssm.text.piece import PIECE_CHARS, Piece, title

_HEADING = re.compile(r"#{1,6}[ \t]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_NUMBER = r"\d+|[ivxlc]+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty"
_CHAPTER = re.compile(rf"\s*(?:(?:chapter|part|book)\s+(?:{_NUMBER})|appendix\s+(?:\d+|[a-z]))\b.{{0,80}}$", re.I)


def _open(path: Path) -> TextIO:
    # newline=None turns every line end into one line feed while streaming
    return path.open(encoding=file_encoding(path), errors="replace", newline=None)


def _lines(file: TextIO) -> Iterator[tuple[str, bool]]:
    """Lines, the very long ones in parts, and whether each begins a line."""
    starts = True
    while line := file.readline(PIECE_CHARS):
        yield line, starts
        starts = line.endswith("\n")


def read_text(path: Path) -> Iterator[Piece]:
    """Text as it is. A line such as "Chapter 8. Photosynthesis" with a blank line before it opens a section."""
    section, after_blank = None, True
    with _open(path) as file:
        for line, starts in _lines(file):
            if starts and after_blank and len(line) < 120 and _CHAPTER.match(line):
                section = title(line)
            yield Piece(line, section=section)
            after_blank = line.isspace()


def read_markdown(path: Path) -> Iterator[Piece]:
    """Markdown as it is. A heading (# to ######) outside fenced code opens a section."""
    section, fence = None, ""
    with _open(path) as file:
        for line, starts in _lines(file):
            if starts and (match := _FENCE.match(line.rstrip("\n"))):
                if not fence:
                    fence = match[1]
                elif match[1].startswith(fence) and not match[2].strip():
                    fence = ""
            elif starts and not fence and (match := _HEADING.match(line)):
                section = title(line[match.end() :].strip().rstrip("#")) or section
            yield Piece(line, section=section)
