"""Which part of a corpus is held out, to measure on and never to learn from.

Of a source with many documents, the fiftieth of those that differ whose hashes are smallest: no order and no seed can
change them, and a copy of one is held out with it. Of a source with few, such as books, the last fiftieth of each.

Shapes: N documents of all sources, M of a split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 50  # one part in so many


def divide(
    ends: NDArray[np.int64], hashes: NDArray[np.uint64], per_source: Sequence[int]
) -> dict[str, NDArray[np.int64]]:
    """The documents of "train" and "held_out", each (M, 2): where they begin and end among the tokens.

    Args:
        ends: (N,) where each document ends; it begins where the one before it ends.
        hashes: (N,) of the documents' tokens.
        per_source: how many of the N documents each source has, in order.
    """
    starts = np.concatenate([[0], ends[:-1]])
    cuts = ends.copy()
    chosen = [np.empty(0, dtype=np.uint64)]
    first = 0
    for count in per_source:
        part = slice(first, first + count)
        distinct = np.unique(hashes[part])
        if len(distinct) >= HELD_OUT:
            chosen.append(distinct[: len(distinct) // HELD_OUT])
        else:
            cuts[part] -= (ends - starts)[part] // HELD_OUT
        first += count
    whole = np.isin(hashes, np.concatenate(chosen))
    cuts[whole] = starts[whole]
    spans = {"train": (starts, cuts), "held_out": (cuts, ends)}
    return {name: np.stack([start, end], axis=1)[start < end] for name, (start, end) in spans.items()}
