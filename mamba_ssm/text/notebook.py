"""Jupyter notebooks to text: Markdown as it is, code and what it printed with their lines. No code is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from mamba_ssm.errors import BookError
from mamba_ssm.text.encoding import check_text, normalise_newlines
from mamba_ssm.text.html import DOCUMENT_BYTES
from mamba_ssm.text.piece import Piece
from mamba_ssm.text.plain import markdown_pieces

_SURROGATE = re.compile("[\ud800-\udfff]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read_notebook(path: Path) -> Iterator[Piece]:
    """Pieces of an .ipynb of format 4; a heading in a Markdown cell opens a section."""
    if path.stat().st_size > DOCUMENT_BYTES:
        raise BookError(f"a notebook above {DOCUMENT_BYTES >> 20} MB; clear its outputs first")
    try:
        notebook = json.loads(path.read_bytes())
        cells = [(cell["cell_type"], _text(cell["source"]), _outputs(cell)) for cell in notebook["cells"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BookError(
            "damaged, or no notebook of format 4; open it in Jupyter and save it again, or run jupyter nbconvert"
        ) from error
    section = None
    for kind, source, outputs in cells:
        if kind == "markdown":
            for piece in markdown_pieces(((line, True) for line in StringIO(f"{source}\n\n")), section):
                section = piece.section
                yield piece
        else:
            for text in (source, *outputs):
                if text.strip():
                    yield Piece(f"{text}\n\n", section=section)


def _text(lines: Any) -> str:
    """What a notebook holds as a string or as a list of lines."""
    text = _SURROGATE.sub("\ufffd", lines if isinstance(lines, str) else "".join(lines))
    check_text(text)
    return normalise_newlines(text).strip("\n")


def _outputs(cell: dict[str, Any]) -> list[str]:
    """What a cell printed and showed as plain text; no pictures, no tracebacks."""
    shown = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", [])]
    return [_COLOURS.sub("", _text(lines)) for lines in shown]
