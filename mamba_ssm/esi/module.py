"""ESI's parameters beside a Mamba backbone, and two ways to search: trained, and with a checkpoint's own embeddings.

Shapes: B batch, M question tokens, S segments, K windows, W tokens of a window, D model width, R search width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.injection import Injection
from mamba_ssm.esi.reader import PAD, Memory, WindowReader
from mamba_ssm.esi.search import EmbeddingSearch, Query, Search


class ESI(nn.Module):
    """The parameters of search, reading and injection: all that ESI adds to a checkpoint, under ``esi.``."""

    def __init__(self, d_model: int, vocab_size: int, config: ESIConfig) -> None:
        super().__init__()
        self.config = config
        self.search = Search(d_model, config.d_search, vocab_size)
        self.reader = WindowReader(d_model, config)
        self.injection = Injection(d_model, config.d_read, config.n_heads)


@dataclass(frozen=True)
class Question:
    """A question, embedded: ids and mask (B, M), hidden (B, M, D), and its query in the search space."""

    ids: Tensor
    mask: Tensor
    hidden: Tensor
    query: Query


class Searcher(Protocol):
    """What embeds questions and texts into one space, and reads what was found."""

    config: ESIConfig

    def ask(self, question_ids: Tensor) -> Question:
        """question_ids (B, M), PAD at the end where shorter -> Question. ValueError where a question has no tokens."""
        ...

    def segment_keys(self, segment_ids: Tensor) -> Tensor:
        """segment_ids (S, segment) -> keys (S, block, R) of the tokens after the warm-up."""
        ...

    def title_keys(self, ids: Tensor) -> Tensor:
        """ids (S, L) -> keys (S, L, R) of texts that are short enough to need no warm-up."""
        ...

    def read(self, question: Question, window_ids: Tensor, scores: Tensor) -> Memory | None:
        """Read window_ids (B, K, W), found with scores (B, K), beside the question; None without a trained reader."""
        ...


class TrainedSearcher:
    """Search and reading with ESI's weights. ``encode``: ids (B, L) -> (B, L, D), n_enc layers from a zero state."""

    def __init__(self, esi: ESI, encode: Callable[[Tensor], Tensor]) -> None:
        self.esi, self.encode, self.config = esi, encode, esi.config

    def ask(self, question_ids: Tensor) -> Question:
        ids, mask = pad_question(question_ids, self.config.question)
        hidden = self.encode(ids)
        return Question(ids, mask, hidden, self.esi.search.question(hidden, ids, mask))

    def segment_keys(self, segment_ids: Tensor) -> Tensor:
        return self.esi.search.keys(self.encode(segment_ids)[:, self.config.warmup :])

    def title_keys(self, ids: Tensor) -> Tensor:
        return self.esi.search.keys(self.encode(ids))

    def read(self, question: Question, window_ids: Tensor, scores: Tensor) -> Memory:
        hidden = self.encode(window_ids.flatten(0, 1)).unflatten(0, window_ids.shape[:2])
        return self.esi.reader(question, hidden, window_ids, self.esi.search.keys(hidden), scores)


class EmbeddingSearcher:
    """Search with a checkpoint's token embeddings (V, D), for checkpoints without ESI weights. There is no reader."""

    def __init__(self, table: Tensor, config: ESIConfig) -> None:
        self.search, self.config = EmbeddingSearch(table), config

    def ask(self, question_ids: Tensor) -> Question:
        ids, mask = pad_question(question_ids, 1)
        return Question(ids, mask, self.search.table[ids], self.search.question(ids, mask))

    def segment_keys(self, segment_ids: Tensor) -> Tensor:
        return self.search.keys(segment_ids[:, self.config.warmup :])

    def title_keys(self, ids: Tensor) -> Tensor:
        return self.search.keys(ids)

    def read(self, question: Question, window_ids: Tensor, scores: Tensor) -> None:
        return None


def pad_question(ids: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Pad (B, M) with PAD to a multiple, so that a batch and a single question are read alike -> ids, mask."""
    # A CUDA graph that is being captured cannot wait for the answer.
    capturing = ids.is_cuda and torch.cuda.is_current_stream_capturing()
    if not capturing and not (ids != PAD).any(-1).all():
        raise ValueError("a question has no tokens")
    ids = F.pad(ids, (0, -ids.shape[1] % multiple), value=PAD)
    return ids, ids != PAD


def segments(ids: Tensor, config: ESIConfig) -> Tensor:
    """Cut a text (..., L), L a multiple of the block, into overlapping segments (..., L / block, segment).

    The text's first segment is warmed up on PAD, the end-of-text token.
    """
    return F.pad(ids, (config.warmup, 0), value=PAD).unfold(-1, config.segment, config.block)
