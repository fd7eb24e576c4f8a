"""The windows of a haystack that a search finds for questions: the model's own search, or BM25 over the same windows.

Shapes: Q questions, M question tokens, K windows, W tokens of a window with its margins, L tokens of a block,
R search width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_ssm.book import Engine
from mamba_ssm.book.blocks import Block, Mark
from mamba_ssm.book.find import Finder
from mamba_ssm.book.rank import KEPT, rank
from mamba_ssm.esi.module import Question
from mamba_ssm.esi.reader import PAD
from mamba_ssm.training.recall.haystack import Haystack


@dataclass(frozen=True)
class Found:
    """Windows, best first: where they begin, and where what is read of them does, (Q, K; -1 where there is none), their
    scores (Q, K), ids (Q, K, W), what headings added to the scores, and how well they fit (Q, K)."""

    starts: Tensor
    read_from: Tensor
    scores: Tensor
    ids: Tensor
    gains: Tensor
    fits: Tensor


class Search(Protocol):
    """The k best windows of each question. Every call reads the haystack again."""

    def __call__(self, questions: Sequence[str], k: int) -> Found: ...


def ask(engine: Engine, questions: Sequence[str]) -> Question:
    rows = [torch.from_numpy(engine.tokenizer.encode(text).ids).long() for text in questions]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return engine.searcher.ask(ids.to(engine.device))


class ModelSearch:
    """ESI's search over a stream of blocks, in memory that does not grow with the haystack: that of books."""

    def __init__(self, engine: Engine, haystack: Haystack) -> None:
        self.engine, self.haystack = engine, haystack

    @torch.inference_mode()
    def __call__(self, questions: Sequence[str], k: int) -> Found:
        engine, config = self.engine, self.engine.config
        asked = [engine.question(question) for question in questions]
        finder = Finder([question.query for question in asked], KEPT * k, engine)
        before = np.full(config.warmup, PAD, dtype=np.int32)
        first = 0
        for ids in self.haystack.blocks(engine.block_tokens):
            with torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.device.type == "cuda"):
                keys = engine.keys(ids, before)
            finder.push(self._block(ids, first), keys)
            before = np.concatenate([before, ids])[-config.warmup :]
            first += len(ids)
        rows = [rank(*each, finder.counts(), k) for each in zip(questions, asked, finder.found(), strict=True)]
        shape = len(questions), k
        starts, scores, gains = torch.full(shape, -1), torch.full(shape, -torch.inf), torch.zeros(shape)
        read_from, fits = starts.clone(), scores.clone()
        ids = torch.full((*shape, config.read_window), PAD)
        for row, ranked in enumerate(rows):
            for place, (window, score, gain, fit) in enumerate(ranked):
                starts[row, place], read_from[row, place] = window.first, window.first - config.margin
                scores[row, place], gains[row, place], fits[row, place] = score, gain, fit
                ids[row, place] = torch.from_numpy(window.padded(config)[0])
        return Found(*(tensor.to(engine.device) for tensor in (starts, read_from, scores, ids, gains, fits)))

    def _block(self, ids: NDArray[np.int32], first: int) -> Block:
        """Every token a character: what windows say is not asked here."""
        places = first + np.arange(len(ids), dtype=np.int64)
        halves = places[:: self.engine.config.stride]
        titles, under = self.haystack.headings(halves)
        changes = np.flatnonzero(np.diff(under, prepend=-1)).tolist()
        marks = tuple(Mark(int(halves[half]), None, titles[under[half]]) for half in changes)
        return Block(first, ids, places, places + 1, "x" * len(ids), first, marks)


class BM25Search:
    """BM25 of English words without stop words, stemmed, over the model's windows; all are kept in memory.

    The scores are the model's, of each window read alone: they are what its reader knows, and how well a window fits.
    """

    def __init__(self, engine: Engine, haystack: Haystack) -> None:
        import bm25s

        self.engine = engine
        config = engine.config
        self.text = np.concatenate(list(haystack.blocks(engine.block_tokens)))
        self.starts = np.arange(0, max(len(self.text) - config.stride, 1), config.stride)
        self.index = bm25s.BM25()
        windows = (engine.tokenizer.decode(self.text[i : i + config.window]) for i in self.starts)
        self.index.index(terms(windows), show_progress=False)

    @torch.inference_mode()
    def __call__(self, questions: Sequence[str], k: int) -> Found:
        engine, config = self.engine, self.engine.config
        found, _ = self.index.retrieve(terms(questions), k=min(k, len(self.starts)), show_progress=False)
        starts = self.starts[found.astype(np.int64)]
        text = np.pad(self.text, (config.margin, config.window + config.margin), constant_values=PAD)
        ids = engine.tokens(text[starts[..., None] + np.arange(config.read_window)])
        own = ids[..., config.margin :][..., : config.window]
        scores = torch.cat([self._scores(question, row) for question, row in zip(questions, own, strict=True)])
        begin = torch.from_numpy(starts).to(engine.device)
        return Found(begin, begin - config.margin, scores, ids, torch.zeros_like(scores), scores)

    def _scores(self, question: str, windows: Tensor) -> Tensor:
        """The model's score of windows without margins (K, W) -> (1, K)."""
        searcher, config = self.engine.searcher, self.engine.config
        padded = torch.nn.functional.pad(windows, (config.warmup, config.block - config.window), value=PAD)
        keys = searcher.segment_keys(padded)[:, : config.window]
        query = ask(self.engine, [question]).query
        matches = torch.einsum("qmr,kwr->qkmw", query.vectors, keys.float()).amax(-1)
        return (matches * query.weights[:, None]).sum(-1)


def terms(texts: Sequence[str] | Iterator[str]) -> Any:
    import bm25s
    import Stemmer

    return bm25s.tokenize(list(texts), stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)


SEARCHES: dict[str, type[ModelSearch | BM25Search]] = {"model": ModelSearch, "bm25": BM25Search}
