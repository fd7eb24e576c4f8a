"""``mamba-esi text``: the text that evidence refers to."""

from __future__ import annotations

from mamba_ssm.cli.options import OriginalArgument
from mamba_ssm.cli.output import write


def text(book: OriginalArgument) -> None:
    """Print the text of BOOK, which the offsets of evidence count characters of."""
    from mamba_ssm.text import read_pieces

    for piece in read_pieces(book):
        write(piece.text)
