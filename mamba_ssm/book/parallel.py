"""One book on several devices: each rank of a process group reads its part, and all get the best windows of all.

A segment's keys depend on its own tokens and on the warm-up before it alone, and a window's score on its own keys. So
parts need nothing of one another but the half window before them and the margin after, which a rank reads itself, and
windows and scores are to the last bit those of one process. What is sent is the k best windows of each question,
whatever the length.

A text in a file is extracted and split into tokens by all ranks, for where its blocks begin is known only then; on a
CPU that takes a tenth of the time. Of a saved book a rank reads its own part alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mamba_ssm.book.blocks import Block
from mamba_ssm.book.engine import Engine
from mamba_ssm.book.find import Finder, Found
from mamba_ssm.esi.search import Keys, Query

RUN = 16  # blocks that a rank reads in a row, beside those around them; at least 2, so that its runs lie apart


class PartFinder(Finder):
    """A Finder on each rank of a group, which all ask the same questions.

    Blocks go to the ranks in runs, so that nobody needs to know how many there are.
    """

    def __init__(self, queries: Sequence[Query], k: int, engine: Engine, group: dist.ProcessGroup) -> None:
        super().__init__(queries, k, engine)
        self.group = group
        self._coming: deque[int] = deque()

    def wants(self, number: int) -> bool:
        wanted = any(self._is_own(near) for near in (number - 1, number, number + 1))
        if wanted:
            self._coming.append(number)
        return wanted

    def push(self, block: Block, stored: Keys) -> None:
        """As a Finder; of the block after a run, only the margin of windows before it."""
        number = self._coming.popleft()
        if self._is_own(number) or self._is_own(number + 1):
            super().push(block, stored)
        else:
            self.finish(block)

    def _is_own(self, number: int) -> bool:
        return number // RUN % dist.get_world_size(self.group) == dist.get_rank(self.group)

    def counts(self) -> NDArray[np.int64]:
        total = torch.from_numpy(super().counts().copy())
        dist.all_reduce(total, group=self.group)
        return total.numpy()

    def kept(self) -> list[list[Found]]:
        told: list[list[list[Found]]] = [[] for _ in range(dist.get_world_size(self.group))]
        # It pickles, which is no danger among the processes of one program.
        dist.all_gather_object(told, super().kept(), self.group)
        return [sorted(chain(*parts), key=_best_first)[: self.k] for parts in zip(*told, strict=True)]


def _best_first(found: Found) -> tuple[float, int]:
    """Of equal scores, the earlier window is the better, as in TopK."""
    return -found.score, found.window.first
