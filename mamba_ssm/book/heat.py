"""How well every part of a book fits a question, for people who want to see where in it the evidence lies.

Shapes: L tokens of a block, R search width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mamba_ssm.book.blocks import Mark
from mamba_ssm.book.engine import Engine
from mamba_ssm.book.store import StoredSource
from mamba_ssm.ops import topk_search


@dataclass(frozen=True)
class Stretch:
    """Characters start:end of a book, where the page and section are that its start lies in.

    ``score`` is the best of the windows that begin in it.
    """

    start: int
    end: int
    page: int | None
    section: str | None
    score: float


@torch.inference_mode()
def heat(source: StoredSource, engine: Engine, question: str, most: int) -> list[Stretch]:
    """The scores of all windows (docs/esi.md, section 2) in at most ``most`` stretches that cover the whole book.

    Raises QuestionError, BookError.
    """
    assert source.info is not None
    query, stride, window = engine.question(question).query, engine.config.stride, engine.config.window
    windows = max(-(-source.info.tokens // stride) - 1, 1)
    count = min(most, windows)
    places: list[Mark] = []
    best: list[float] = []
    tail = before = None
    for block, keys in source.blocks():
        text, values = block if tail is None else block.after(tail), keys.values(engine.device)
        if tail is None:  # a book shorter than a window is one window
            values = F.pad(values, (0, 0, 0, max(window - len(values), 0)))
        scores, before = topk_search.window_scores(query.vectors, query.weights, values, stride, before)
        for number, score in enumerate(scores[0].tolist(), text.first // stride):
            if number * count // windows == len(best):
                start = int(text.starts[number * stride - text.first])
                places.append(text.mark(start)._replace(start=start))
                best.append(score)
            best[-1] = max(best[-1], score)
        tail = block.tail(stride)
    ends = [place.start for place in places[1:]] + [source.info.characters]
    return [
        Stretch(place.start, end, place.page, place.section, score)
        for place, end, score in zip(places, ends, best, strict=True)
    ]
