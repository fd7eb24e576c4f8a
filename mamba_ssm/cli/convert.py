"""``mamba-esi convert``: a checkpoint in the other layout."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Layout(str, Enum):
    original = "original"
    transformers = "transformers"


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A checkpoint's folder, or its name on the hub.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new or empty folder.")],
    to: Annotated[
        Layout | None, typer.Option("--to", help="The layout to write. (default: the one that SOURCE is not in)")
    ] = None,
) -> None:
    """Write a checkpoint in transformers' layout, or from there in the original's, bit for bit."""
    from mamba_ssm.models import convert as conversion

    written = conversion.convert(source, target, None if to is None else to.value)
    print(f"{target}: the checkpoint {source} in the layout {written}", file=sys.stderr)
