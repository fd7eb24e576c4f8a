"""Plain text, Markdown and reStructuredText as they are, streamed: memory does not grow with the file."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from mamba_ssm.text.encoding import file_encoding
from mamba_ssm.text.piece import PIECE_CHARS, Piece, title

_HEADING = re.compile(r"#{1,6}[ \t]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_UNDERLINED = re.compile(r"[^\s>|*+-]")  # how a line begins that may be a heading by the line of = or - under it
_UNDERLINE = re.compile(r"(?:=+|-{2,})\s*$")
# Any punctuation, the same all along, underlines a title, and may stand above it too.
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*\s*$")
_ROLE = re.compile(r"(?::[\w:.+-]{1,40}:)?`+([^`]*)`+_*")  # as in :mod:`json`: a title is cited without
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


def _followed(lines: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool, str, str]]:
    """Lines as they are given, each with the two after it, which are empty at the end."""
    held: deque[tuple[str, bool]] = deque()
    for item in chain(lines, [("", True)] * 2):
        held.append(item)
        if len(held) == 3:
            (line, starts), (second, _), (third, _) = held
            yield line, starts, second, third
            held.popleft()


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
    """Markdown as it is. A heading (# to ######, or underlined) outside fenced code opens a section."""
    with _open(path) as file:
        yield from markdown_pieces(_lines(file))


def markdown_pieces(lines: Iterable[tuple[str, bool]], section: str | None = None) -> Iterator[Piece]:
    """Markdown in lines, each with whether it begins one."""
    fence, after_blank = "", True
    for line, starts, second, _ in _followed(lines):
        if starts and (match := _FENCE.match(line.rstrip("\n"))):
            if not fence:
                fence = match[1]
            elif match[1].startswith(fence) and not match[2].strip():
                fence = ""
        elif starts and not fence:
            if match := _HEADING.match(line):
                section = title(line[match.end() :].strip().rstrip("#")) or section
            elif after_blank and _UNDERLINED.match(line) and _UNDERLINE.match(second):
                section = title(line)
        yield Piece(line, section=section)
        after_blank = line.isspace()


def read_rst(path: Path) -> Iterator[Piece]:
    """reStructuredText as it is: no directive is followed, so none can include a file or run anything.

    A title, underlined or also overlined, opens a section.
    """
    section = None
    free, rest = True, 0  # whether a title may begin here; how many lines of one are still to come
    with _open(path) as file:
        for line, starts, second, third in _followed(_lines(file)):
            if rest:
                rest -= 1
                free = rest == 0
            elif starts and free and line.rstrip() == third.rstrip() and _adorns(line, second):
                section, rest = title(_ROLE.sub(r"\1", second)), 2
            elif starts and free and not line[0].isspace() and _adorns(second, line):
                section, rest = title(_ROLE.sub(r"\1", line)), 1
            else:
                free = line.isspace()
            yield Piece(line, section=section)


def _adorns(line: str, text: str) -> bool:
    """Whether a line of punctuation is long enough to make the text beside it a title."""
    match = _ADORNMENT.match(line)
    if match is None or text.isspace() or _ADORNMENT.match(text):
        return False
    return len(line.rstrip()) >= min(len(text.strip()), 4)
