"""A corpus that `write_corpus` wrote, opened: its files are mapped, and nothing of them is held in memory.

Shapes: T tokens, N documents of a split.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.errors import CorpusError
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.corpus.manifest import SPAN_BYTES, SPLITS, Manifest, split_name
from mamba_ssm.utils.files import sha256_of_file

AGAIN = "delete the folder and write the corpus again"


@dataclass(frozen=True)
class Split:
    """Documents of a corpus: document i is tokens starts[i]:ends[i] (N,) int64 of it. ``name`` is for messages."""

    corpus: Corpus
    name: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    tokens: int

    @property
    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    @property
    def vocab_size(self) -> int:
        return self.corpus.vocab_size

    def take(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids at places of the corpus, of any shape."""
        return self.corpus.take(places)


class Corpus:
    """Tokens in a folder, and where its documents lie. Open it with `Corpus.open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._shards: Sequence[NDArray[np.unsignedinteger]] = [
            np.memmap(_sized(folder / name, count * dtype.itemsize), dtype=dtype, mode="r", shape=(count,))
            for name, count in manifest.shards
        ]
        self._splits = {name: self._open_split(name) for name in SPLITS}

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Corpus:
        """Open a folder that `write_corpus` wrote. Raises CorpusError for one that is none, or is damaged.

        What is compared here is each file's size, and all that is said about documents. A flipped bit among the tokens
        is found by `verify` alone, which reads all of them.
        """
        folder = Path(folder)
        return cls(folder, Manifest.read(folder))

    @property
    def tokens(self) -> int:
        """T, of all splits."""
        return self.manifest.tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.manifest.vocab_size

    @property
    def fingerprint(self) -> str:
        """sha256 of what it holds: the same for the same tokens in the same splits."""
        return self.manifest.fingerprint

    def tokenizer(self) -> Tokenizer:
        """What the ids are of. Raises CheckpointError."""
        return Tokenizer.from_folder(self.folder)

    def split(self, name: str) -> Split:
        """The documents of "train" or "held_out", which may be none."""
        return self._splits[name]

    def take(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids at places of the T tokens, of any shape. Raises CorpusError for an id outside the vocabulary."""
        shards, within = np.divmod(places, self.manifest.shard_tokens)
        ids = np.empty(places.shape, dtype=np.int64)
        for number in np.unique(shards):
            here = shards == number
            ids[here] = self._shards[number][within[here]]
        if ids.size and ids.max() >= self.vocab_size:
            raise CorpusError(f"{self.folder} is damaged (a token outside its vocabulary): {AGAIN}")
        return ids

    def verify(self) -> None:
        """Compare every file with its checksum. Raises CorpusError."""
        for name, wanted in self.manifest.sha256.items():
            if sha256_of(self.folder / name) != wanted:
                raise CorpusError(f"{self.folder / name} is damaged (another checksum): {AGAIN}")

    def _open_split(self, name: str) -> Split:
        count = self.manifest.documents[name]
        path = _sized(self.folder / split_name(name), count * SPAN_BYTES)
        spans = np.memmap(path, dtype="<i8", mode="r", shape=(count, 2)) if count else np.zeros((0, 2), dtype=np.int64)
        starts, ends = spans.T
        if ((starts < 0) | (starts >= ends) | (ends > self.tokens)).any():
            raise CorpusError(f"{path} is damaged (a document outside the text): {AGAIN}")
        return Split(self, name, starts, ends, int((ends - starts).sum()))


def sha256_of(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error


def _sized(path: Path, size: int) -> Path:
    """The path, if the file there has this size, so that it can be mapped."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    if found != size:
        raise CorpusError(f"{path} has {found:,} bytes and not {size:,}, as after a copy that was cut off: {AGAIN}")
    return path
