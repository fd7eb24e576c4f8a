"""How well each part of a book fits a question, in memory that grows with the book's pages and sections alone.

Shapes: W windows of a block, N bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mamba_ssm.book.blocks import Mark
from mamba_ssm.book.engine import Engine
from mamba_ssm.book.source import Report, Source
from mamba_ssm.esi.search import StreamingScores, whole_window

BINS = 2000


class Relevance(NamedTuple):
    """The best window of each bin, in the book's order: the character at which it begins, positions (N,) int64, and the
    search's score of it, scores (N,) fp32, and its page and section, N marks. A bin is a run of as many windows as the
    next, but for the last one."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]
    marks: list[Mark]


@torch.inference_mode()
def relevance(
    source: Source, engine: Engine, question: str, bins: int = BINS, report: Report | None = None
) -> Relevance:
    """The best window of each of at most ``bins`` bins. Of equal scores the earlier window is the better."""
    stride = engine.config.stride
    search = StreamingScores(engine.question(question).query, stride)
    width = 1  # windows of a bin
    numbers, positions, scores = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    marks: list[Mark] = []
    half = np.empty(0, np.int64)  # where the tokens of the last half window begin
    for block, keys in source.blocks(report):
        marks += [mark for mark in block.marks if not marks or mark.start > marks[-1].start]
        headings = engine.headings(*block.sections(stride))
        keys = keys.map(lambda part: part.to(engine.device))
        if not half.size:
            keys, headings = whole_window(keys, headings, stride)
        new, first, _ = search.score(keys, headings)
        starts = np.concatenate([half, block.starts])
        half = block.starts[-stride:]
        numbers = np.concatenate([numbers, first.cpu().numpy() // stride])
        positions = np.concatenate([positions, starts[::stride][: len(first)]])
        scores = np.concatenate([scores, new[0].float().cpu().numpy()])
        while numbers[-1] // width >= bins:
            width *= 2
        order = np.lexsort((-scores, numbers // width))
        best = order[np.unique(numbers[order] // width, return_index=True)[1]]
        numbers, positions, scores = numbers[best], positions[best], scores[best]
    of = np.searchsorted([mark.start for mark in marks], positions, side="right") - 1
    return Relevance(positions, scores, [marks[mark] for mark in of.tolist()])
