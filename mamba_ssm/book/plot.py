"""A picture of how well each part of a book fits a question. Needs matplotlib, of the extra ``plots``."""

from __future__ import annotations

import os
from pathlib import Path

from mamba_ssm.book.answers import Answer
from mamba_ssm.book.relevance import Relevance
from mamba_ssm.errors import MambaESIError
from mamba_ssm.utils.files import written_aside

SUFFIXES = (".png", ".svg", ".pdf")


def require(path: str | os.PathLike[str]) -> None:
    """Raise MambaESIError where a picture cannot be drawn to this path, before there is anything to draw."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise MambaESIError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MambaESIError('pictures need matplotlib: pip install "mamba-esi[plots]"') from error


def draw(relevance: Relevance, answer: Answer, path: str | os.PathLike[str]) -> None:
    """Draw the search's scores along the book, with the passages of the answer and the place it was copied from."""
    require(path)
    # Not pyplot, which keeps what it draws and may open a window.
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(relevance.positions, relevance.scores, linewidth=0.7, color="0.55", label="best window of each bin")
    starts = [passage.start for passage in answer.evidence]
    edge = axes.get_xaxis_transform()  # their own scores are the reader's, on another scale
    axes.plot(starts, [0.03] * len(starts), "^", transform=edge, markersize=6, color="C0", label="evidence")
    if answer.start is not None:
        axes.axvline(answer.start, color="C1", linewidth=1, label="answer")
    axes.set(xlim=(0, answer.book.characters), xlabel="characters of the book", ylabel="score of the search")
    axes.set_title(_literal(f"{answer.question} — {answer.text}"), fontsize=9, wrap=True)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.2))
    with written_aside(path) as part:
        figure.savefig(part, dpi=150)


def _literal(text: str) -> str:
    """Text in one line, in which a dollar begins no formula."""
    return " ".join(text.split()).replace("$", r"\$")
