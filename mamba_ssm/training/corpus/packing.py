"""Batches of documents packed back to back: no padding, no leak between documents, and nothing left out.

Shapes: T tokens and N documents of the split, L tokens of a row, B rows that one process gets, S rows of a step.

An epoch is all N documents in an order of its own. Epochs follow one another without end, and that stream is cut every
L tokens into rows. The rows that begin in an epoch are shuffled once more, so that a long document is not a step of its
own. A row begins without state, so what is lost to cutting is the context of its first document alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_ssm.errors import CorpusError
from mamba_ssm.training.corpus.corpus import Split

NO_TARGET = -100  # what PyTorch's cross-entropy leaves out


class Packed(NamedTuple):
    """A batch: ``input_ids`` (B, L) int64; ``targets`` (B, L) int64, the next token, or -100 where the document ends;
    ``seq_idx`` (B, L) int32, which changes where a document begins, for `MambaLMHeadModel.forward`."""

    input_ids: Tensor
    targets: Tensor
    seq_idx: Tensor


class _Epoch(NamedTuple):
    """``order`` (N,): the documents; ``ends`` (N,): the tokens up to the end of each; ``rows``: those that begin in the
    epoch, by their number in the stream, shuffled; ``first``: the lowest of these numbers."""

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    first: int


class PackedBatches:
    """The batch of each step, as a function of seed and step alone: no state to save, any number of processes.

    ``length`` is L, ``rows`` is S, of all processes together. Every token of an epoch is in exactly one row; a row at
    an epoch's end goes on into the next one.

    Memory: 16 bytes a document and 8 bytes a row of the epoch, for two epochs at a time. Ten billion tokens in ten
    million documents, in rows of 2,048: 2 × (160 + 39) MB. The tokens themselves stay on disk.

    Raises CorpusError where the split has no text, and ValueError for sizes below 1.
    """

    def __init__(self, split: Split, length: int, rows: int, seed: int) -> None:
        if length < 1 or rows < 1 or seed < 0:
            raise ValueError(f"length {length} and rows {rows} must be 1 or more, and seed {seed} 0 or more")
        if not split.tokens:
            raise CorpusError(f"{split.corpus.folder} has no text in its split {split.name!r}: prepare more text")
        self.split, self.length, self.rows, self.seed = split, length, rows, seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    @property
    def tokens(self) -> int:
        """T, of an epoch."""
        return self.split.tokens

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Packed:
        """The rows of a step, counted from 0, that process ``rank`` of ``ranks`` gets: all of them in order, if joined.

        Where ``ranks`` does not divide the rows, some processes get one more than others.
        """
        if not 0 <= rank < ranks <= self.rows:
            raise ValueError(f"process {rank} of {ranks} has no part in {self.rows} rows")
        mine = range(self.rows * rank // ranks, self.rows * (rank + 1) // ranks)
        places, ends, begins = np.stack([self._row(step * self.rows + row) for row in mine], axis=1)
        following = places + 1
        has_next = following < ends
        targets = np.full(places.shape, NO_TARGET, dtype=np.int64)
        targets[has_next] = self.split.take(following[has_next])
        return Packed(
            torch.from_numpy(self.split.take(places)),
            torch.from_numpy(targets),
            torch.from_numpy(begins.cumsum(axis=1).astype(np.int32)),
        )

    def _row(self, number: int) -> NDArray[np.int64]:
        """(3, L): the place of each token in the corpus, where its document ends there, and 1 where it begins."""
        epoch = self._epoch(number * self.length // self.tokens)
        position = int(epoch.rows[number - epoch.first]) * self.length
        end = position + self.length
        parts = []
        while position < end:
            later, offset = divmod(position, self.tokens)
            parts.append(self._stretch(self._epoch(later), offset, min(offset + end - position, self.tokens)))
            position += parts[-1].shape[1]
        return np.concatenate(parts, axis=1)

    def _stretch(self, epoch: _Epoch, start: int, stop: int) -> NDArray[np.int64]:
        """As `_row`, of tokens start to stop of an epoch."""
        positions = np.arange(start, stop)
        at = np.searchsorted(epoch.ends, positions, side="right")
        documents = epoch.order[at]
        ends = self.split.ends[documents]
        places = ends - (epoch.ends[at] - positions)
        return np.stack([places, ends, places == self.split.starts[documents]])

    def _shuffled(self, number: int) -> _Epoch:
        lengths = self.split.ends - self.split.starts
        order = self._permutation(len(lengths), number, 0)
        first, last = (-(-n * self.tokens // self.length) for n in (number, number + 1))
        return _Epoch(order, lengths[order].cumsum(), first + self._permutation(last - first, number, 1), first)

    def _permutation(self, size: int, epoch: int, which: int) -> NDArray[np.int64]:
        """Of ``size`` numbers. NumPy promises the raw bits of a generator, from any version, but not its shuffles."""
        bits = np.random.PCG64(np.random.SeedSequence((self.seed, epoch, which))).random_raw(size)
        return np.argsort(bits, kind="stable")
