"""What a corpus's folder says of itself, in manifest.json, and the names of its files.

Shapes: T tokens, N documents of a split.

| file | content |
|---|---|
| tokens-00000.bin and on | ids (T,), little-endian uint16 or uint32, ``shard_tokens`` in each but the last |
| train.bin, held_out.bin | documents (N, 2), little-endian int64: where in the T tokens each begins and ends |
| tokenizer.json | what the ids are of |
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mamba_ssm.errors import CorpusError
from mamba_ssm.text.tokenizer import FILE as TOKENIZER

FILE, FORMAT = "manifest.json", 1
SPLITS = ("train", "held_out")
DTYPES = ("uint16", "uint32")
BYTES = 1 << 20  # of the manifest: room for ten thousand shards
SPAN_BYTES = 16  # of a document in a split's file
_LARGEST = 1 << 62


@dataclass(frozen=True)
class Manifest:
    """``sha256`` is of each file by name; ``sources`` of what the corpus was made from and how."""

    format: int
    sources: str
    dtype: str
    vocab_size: int
    tokens: int
    shard_tokens: int
    documents: dict[str, int]
    sha256: dict[str, str]

    @property
    def shards(self) -> list[tuple[str, int]]:
        """The name of each file of tokens, with how many it holds."""
        starts = range(0, self.tokens, self.shard_tokens)
        return [(shard_name(i), min(self.shard_tokens, self.tokens - start)) for i, start in enumerate(starts)]

    @property
    def fingerprint(self) -> str:
        """sha256 of what the corpus holds, wherever it came from."""
        content = [self.dtype, self.vocab_size, self.shard_tokens, sorted(self.sha256.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises CorpusError where there is none, or one that was not written by `write`."""
        path = folder / FILE
        try:
            with path.open("rb") as file:
                content = file.read(BYTES + 1)
        except OSError as error:
            raise CorpusError(
                f"{folder} is no corpus ({FILE}: {error.strerror}): write one with `mamba-esi train prepare`"
            ) from error
        try:
            if len(content) > BYTES:
                raise ValueError(f"more than {BYTES:,} bytes")
            found = json.loads(content)
            if not isinstance(found, dict) or found.keys() != {field.name for field in fields(cls)}:
                raise ValueError("other entries than a corpus's")
            manifest = cls(**found)
            manifest._check()
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path} is damaged ({error}): write the corpus again in another folder") from error
        return manifest

    def _check(self) -> None:
        """Raises ValueError for a value that no corpus has: sizes are multiplied and files are named by them."""
        if self.format != FORMAT:
            raise ValueError(f"format {str(self.format)[:20]}, and this version reads {FORMAT}")
        if self.dtype not in DTYPES or not isinstance(self.sources, str):
            raise ValueError("no such dtype or sources")
        if not (isinstance(self.documents, dict) and self.documents.keys() == set(SPLITS)):
            raise ValueError("no counts of documents")
        counts = (self.vocab_size, self.tokens, self.shard_tokens, *self.documents.values())
        if not all(type(count) is int and 0 <= count < _LARGEST for count in counts):
            raise ValueError("a size that is no number")
        # Compared before the names are made: a hostile count must not make a list of them.
        if min(counts[:3]) < 1 or -(-self.tokens // self.shard_tokens) > BYTES:
            raise ValueError("a size that no corpus has")
        names = {TOKENIZER, *(name for name, _ in self.shards), *map(split_name, SPLITS)}
        if not (isinstance(self.sha256, dict) and self.sha256.keys() == names):
            raise ValueError("checksums of other files than its own")
        if not all(isinstance(value, str) for value in self.sha256.values()):
            raise ValueError("a checksum that is no text")


def shard_name(number: int) -> str:
    return f"tokens-{number:05}.bin"


def split_name(split: str) -> str:
    return f"{split}.bin"
