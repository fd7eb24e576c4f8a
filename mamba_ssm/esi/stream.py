"""ESI over one tensor: search what was read so far, and give each position the windows that end before its block.

Shapes: B batch, L tokens of a call, K windows, W tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_ssm.esi.module import Searcher
from mamba_ssm.esi.reader import PAD, Memory
from mamba_ssm.esi.search import StreamingSearch


@dataclass(frozen=True)
class Hits:
    """The windows found so far, best first: first tokens (B, K; -1 where there is none), scores and weights (B, K)."""

    indices: Tensor
    scores: Tensor
    weights: Tensor


class ESIStream:
    """What ESI remembers while a model reads a text: the unfinished block and the k best windows. It does not grow.

    Whole, chunked and token by token agree, for a position sees the windows that end before its block begins, however
    the text was cut into calls.
    """

    def __init__(self, searcher: Searcher, question_ids: Tensor) -> None:
        config = searcher.config
        self.searcher, self.config = searcher, config
        self.question = searcher.ask(question_ids)
        self.search = StreamingSearch(self.question.query, config.top_k, config.stride)
        B = len(question_ids)
        self._recent = question_ids.new_full((B, config.warmup), PAD)
        self._windows = question_ids.new_full((B, config.top_k, config.window), PAD)
        self._memory: Memory | None = None

    def advance(self, ids: Tensor) -> list[tuple[slice, Memory | None]]:
        """Read ids (B, L). Returns the runs of positions 0..L-1 that see the same windows, with those windows, read."""
        if ids.shape[1] == 0:
            return [(slice(0, 0), self._memory)]
        runs, done = [], 0
        while done < ids.shape[1]:
            room = self.config.segment - self._recent.shape[1]
            piece = slice(done, min(done + room, ids.shape[1]))
            runs.append((piece, self._memory))
            self._recent = torch.cat([self._recent, ids[:, piece]], 1)
            done = piece.stop
            if self._recent.shape[1] == self.config.segment:
                self._finish_block()
        return runs

    def _finish_block(self) -> None:
        """Search the finished segment; its last tokens warm up the next."""
        config, segment = self.config, self._recent
        straddles = self.search.position > 0
        source = self.search.push(self.searcher.segment_keys(segment))
        # The first new window began half a window before this block, if there was a block before it.
        text = segment[:, config.warmup - (config.stride if straddles else 0) :]
        new = text.unfold(1, config.window, config.stride)
        pool = torch.cat([self._windows, new], 1)
        self._windows = pool.gather(1, source[..., None].expand(-1, -1, config.window))
        self._memory = self.searcher.read(self.question, self._windows, self.search.top.scores)
        self._recent = segment[:, -config.warmup :]

    @property
    def hits(self) -> Hits:
        """What was found in the blocks that are finished."""
        top = self.search.top
        weights = torch.nan_to_num(top.scores.softmax(-1))
        return Hits(top.starts, top.scores, weights)
