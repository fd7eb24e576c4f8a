"""What a shelf keeps of a book beside its .esi file, and the search of many books at once.

A question could be scored against every key: 128 bytes for each token of the shelf. So the search has two passes. The
first takes for a token's key the mean key of that token in texts of random tokens, which is one small table for all
books: a token of the shelf costs four bytes, its id, and a row of a table of what the vocabulary says to the question.
The second scores the best windows of the first exactly, with their own keys, which are mapped into memory.

Shapes: L tokens of a book in whole half windows, two at least; V vocabulary, R search width, H half windows, M question
tokens.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_ssm.book.engine import Engine
from mamba_ssm.book.find import matches, reach
from mamba_ssm.book.store import StoredSource
from mamba_ssm.errors import BookError, ShelfError
from mamba_ssm.esi.reader import PAD
from mamba_ssm.esi.search import Keys, Query, half_window_maxima
from mamba_ssm.ops.table_scores import table_scores

EXACT_TOKENS = 1 << 20  # so many are scored in one pass, as one book is
CANDIDATES = 4096  # windows that the second pass scores
AT_ONCE = 512  # of them: their keys take 16 MB in fp32, where they overlap, to 32
LANES = 16  # numbers of fp32 in a cache line
TEXTS = 4  # of all tokens in random order
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Index:
    """Where in a book's .esi file its keys are, by block, and the tokens of all blocks.

    ids (L,) int32, the last one again where the book ends before; tokens, characters, codes and scales (blocks,) int64:
    a block's first token and first character in the book, and the first byte of its keys' parts in the file.
    """

    ids: NDArray[np.int32]
    tokens: NDArray[np.int64]
    characters: NDArray[np.int64]
    codes: NDArray[np.int64]
    scales: NDArray[np.int64]

    @classmethod
    def of(cls, source: StoredSource, window: int) -> Index:
        blocks = [(block.ids, block.first, block.offset) for block in source.texts()]
        ids = np.concatenate([ids for ids, _, _ in blocks])
        more = max(-len(ids) % (window // 2), window - len(ids))
        codes, scales = source.key_places()
        tokens, characters = np.array([places for _, *places in blocks], np.int64).T
        return cls(np.pad(ids, (0, more), mode="edge"), tokens, characters, codes, scales)

    def save(self, path: Path) -> None:
        """Write to a new file, until it is on disk."""
        save_file({name: torch.from_numpy(part).contiguous() for name, part in vars(self).items()}, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path, tokens: int, vocabulary: int) -> Index:
        """Map a file into memory. Raises BookError where it is not what was written for a book of so many tokens."""
        try:
            index = cls(**{name: part.numpy() for name, part in load_file(path).items()})
            ids, *places = vars(index).values()
            if ids.dtype != np.int32 or ids.ndim != 1 or len(ids) < tokens or ids.min() < 0 or ids.max() >= vocabulary:
                raise ValueError("tokens out of range")
            if any(each.dtype != np.int64 or each.shape != index.tokens.shape or each.ndim != 1 for each in places):
                raise ValueError("the parts of blocks differ")
            if index.tokens[0] or index.characters[0] or min(np.diff(index.tokens).min(initial=1), 1) < 1:
                raise ValueError("blocks out of order")
        except (SafetensorError, OSError, ValueError, TypeError, IndexError) as error:
            raise BookError(f"{path}: damaged, or gone; add the book again") from error
        return index


class MappedKeys:
    """The keys (rows, width) in a book's .esi file, without reading the rest of it. Use it in a ``with``."""

    def __init__(self, path: Path, index: Index, rows: int, width: int) -> None:
        self.index, self.rows, self.width, self.name = index, rows, width, path
        try:
            with path.open("rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BookError(f"{path}: cannot be opened ({error}); add the book again") from error

    def halves(self, numbers: NDArray[np.int64], stride: int) -> Keys:
        """Keys (n * stride, R) of half windows by their numbers (n,); those beyond the book's end are zero."""
        codes = np.zeros((len(numbers), stride, self.width), np.int8)
        scales = np.zeros((len(numbers), stride), np.float16)
        size, wide = stride * self.width, 2 * stride
        blocks = np.searchsorted(self.index.tokens, numbers * stride, side="right") - 1
        for place, (first, block) in enumerate(zip((numbers * stride).tolist(), blocks.tolist(), strict=True)):
            if first >= self.rows:
                continue
            row = first - int(self.index.tokens[block])
            start, scale = int(self.index.codes[block]) + row * self.width, int(self.index.scales[block]) + 2 * row
            if not (0 <= start <= len(self.bytes) - size and 0 <= scale <= len(self.bytes) - wide):
                raise BookError(f"{self.name}: damaged; add the book again")
            codes[place] = np.frombuffer(self.bytes, np.int8, size, start).reshape(stride, self.width)
            scales[place] = np.frombuffer(self.bytes[scale : scale + wide], np.float16)
        return Keys(torch.from_numpy(codes).flatten(0, 1), torch.from_numpy(scales).flatten())

    def __enter__(self) -> MappedKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes.close()


def token_keys(engine: Engine, folder: Path) -> Tensor:
    """The mean key of each token of the vocabulary in texts of random tokens: (V, R) fp16, kept in ``folder``."""
    path = folder / f"tokens-{engine.fingerprint[:16]}{SUFFIX}"
    shape = (engine.tokenizer.vocab_size, engine.width)
    if path.exists():
        try:
            keys = load_file(path)["keys"]
        except (SafetensorError, OSError, KeyError) as error:
            raise ShelfError(f"{path}: damaged; remove it, and it is made again") from error
        if keys.shape != shape or keys.dtype != torch.float16:
            raise ShelfError(f"{path}: of another model; remove it, and it is made again")
        return keys
    drawn = np.random.default_rng(0)
    total = torch.zeros(shape)
    for _ in range(TEXTS):
        before = np.full(engine.config.warmup, PAD, np.int32)
        order = drawn.permutation(shape[0]).astype(np.int32)
        for first in range(0, len(order), engine.block_tokens):
            ids = order[first : first + engine.block_tokens]
            total[torch.from_numpy(ids).long()] += engine.keys(ids, before).values().cpu()[: len(ids)]
            before = np.concatenate([before, ids])[-len(before) :]
    keys = (total / TEXTS).half()
    part = folder / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        save_file({"keys": keys}, part)
        part.replace(path)
    except OSError as error:
        raise ShelfError(f"{path}: cannot be written ({error.strerror}); check the folder and its space") from error
    finally:
        part.unlink(missing_ok=True)
    return keys


@torch.inference_mode()
def candidates(
    query: Query, keys: Tensor, books: Sequence[NDArray[np.int32]], stride: int, k: int
) -> list[NDArray[np.int64]]:
    """The first pass: the k windows that score best with the tokens' mean keys (V, R), as numbers by book, in order.

    ``books`` holds the ids (L,) of each.
    """
    weights = query.weights[0].cpu()
    asked = weights > 0
    vectors = query.vectors[0].cpu()[asked] * weights[asked, None]
    # In whole cache lines, which the CPU's kernel otherwise makes of the table for each book.
    table = keys.float() @ F.pad(vectors, (0, 0, 0, -len(vectors) % LANES)).T
    scores = [table_scores(table, torch.from_numpy(ids), stride) for ids in books]
    every = torch.cat(scores)
    best = every.topk(min(k, len(every)), sorted=False).indices.sort().values.numpy()
    ends = np.cumsum([len(part) for part in scores])
    parts = np.split(best, np.searchsorted(best, ends[:-1]))
    return [part - (end - len(own)) for part, end, own in zip(parts, ends, scores, strict=True)]


@torch.inference_mode()
def exact_scores(query: Query, keys: MappedKeys, windows: NDArray[np.int64], stride: int) -> Tensor:
    """The second pass: scores (n,) of a book's windows by their numbers (n,)."""
    query = Query(query.vectors.cpu(), query.weights.cpu())
    scores = []
    for start in range(0, len(windows), AT_ONCE):
        part = windows[start : start + AT_ONCE]
        halves, places = np.unique(np.concatenate([part, part + 1]), return_inverse=True)
        maxima = half_window_maxima(query, keys.halves(halves, stride), stride)[0]
        first, second = np.split(places, 2)
        scores.append(query.weights[0] @ torch.maximum(maxima[:, first], maxima[:, second]))
    return torch.cat(scores)


@torch.inference_mode()
def exact_matches(query: Query, keys: MappedKeys, windows: NDArray[np.int64], stride: int) -> list[NDArray[np.float32]]:
    """What `Found` keeps of windows (n,) by their numbers, in their order."""
    halves, places = np.unique(reach(torch.from_numpy(windows)).numpy(), return_inverse=True)
    mapped = keys.halves(halves, stride).map(lambda part: part.unflatten(0, (-1, stride)))
    vectors = query.vectors.cpu().expand(len(windows), -1, -1)
    return list(matches(vectors, mapped, torch.from_numpy(places.reshape(len(windows), -1))))
