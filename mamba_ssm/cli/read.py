"""``mamba-esi read``: read a book once, to ask it later."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mamba_ssm.cli.options import Device, DeviceOption, EsiOption, ModelOption, OriginalArgument


def read(
    book: OriginalArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.esi", help="Where to keep what was read.")],
    model: ModelOption = None,
    esi: EsiOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Read BOOK once; `mamba-esi ask FILE.esi ...` then answers at once."""
    if output.suffix.lower() != ".esi" or not output.parent.is_dir():
        raise typer.BadParameter("give a file that ends in .esi, in a folder that exists", param_hint="-o")
    from mamba_ssm import book as books

    with books.read(book, books.Engine.load(model, device.value, esi)) as done:
        done.save(output)
        info = done.info
    assert info is not None
    print(f"{output}: {info.tokens:,} tokens, {info.characters:,} characters", file=sys.stderr)
