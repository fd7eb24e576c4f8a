"""Train the search, and run it over whole books to find what the reader is trained on.

Shapes: Q questions, A article crops, T tokens of a crop, W windows, K kept windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import segments
from mamba_ssm.esi.search import StreamingSearch, half_window_maxima, window_scores
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.losses import any_of_loss


class SearchBatch(NamedTuple):
    """Crops (A, T) of articles, questions (Q, M), and each question's crop (Q,) and gold spans in it (Q, G, 2).

    Each of its spans is to be found, of a long one any part; where a question has fewer, the rest are -1.
    """

    crops: Tensor
    questions: Tensor
    crop: Tensor
    gold: Tensor


class SearchBatches:
    """Batches of crops of distinct articles, with questions whose answers lie inside the crops: a batch is a function
    of seed and step.

    All are of one shape: a question comes twice where the crops have too few. Articles without questions are only taken
    where there are too few others. ``word_dropout`` is the share of the questions' tokens that are left out, against
    learning questions by heart.
    """

    def __init__(
        self,
        examples: Examples,
        n_crops: int,
        crop_tokens: int,
        max_questions: int,
        seed: Sequence[int],
        word_dropout: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.examples, self.n_crops, self.crop_tokens, self.seed = examples, n_crops, crop_tokens, seed
        self.word_dropout, self.device = word_dropout, device
        self.questions = min(max_questions, len(examples.questions))
        self.by_article = [np.flatnonzero(examples.article == a) for a in range(len(examples.offsets) - 1)]
        self.asked = np.array([len(rows) > 0 for rows in self.by_article])

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> SearchBatch:
        """Of a step, a process's share of the questions, and all crops: every window counts in a question's loss."""
        examples, rng = self.examples, np.random.default_rng((*self.seed, step))
        crops, chosen, crop_of, shift = [], [], [], []
        order = rng.permutation(len(self.by_article))
        order = order[np.argsort(~self.asked[order], kind="stable")]
        for place, article in enumerate(order[: self.n_crops]):
            text = examples.text(article)
            start = int(rng.integers(0, max(1, len(text) - self.crop_tokens + 1)))
            crop = text[start : start + self.crop_tokens]
            crops.append(np.pad(crop, (0, self.crop_tokens - len(crop))))
            candidates = self.by_article[article]
            first, last = examples.gold[candidates, 0, 0], examples.gold[candidates, 0, 1]
            candidates = candidates[(first >= start) & (last < start + self.crop_tokens)]
            chosen.append(candidates)
            crop_of.append(np.full(len(candidates), place))
            shift.append(np.full(len(candidates), start))
        rows, crop_rows, shifts = map(np.concatenate, (chosen, crop_of, shift))
        pick = np.resize(rng.permutation(len(rows)), self.questions)
        questions = examples.questions[rows[pick]]
        left = np.where(rng.random(questions.shape) < self.word_dropout, 0, questions)
        questions = np.where(left.any(1, keepdims=True), left, questions)
        gold = examples.gold[rows[pick]]
        gold = np.where(gold < 0, -1, gold - shifts[pick, None, None])
        own = share(len(pick), rank, ranks)
        arrays = (np.stack(crops), questions[own], crop_rows[pick][own], gold[own])
        return SearchBatch(*(torch.from_numpy(array).to(self.device, non_blocking=True) for array in arrays))


def share(rows: int, rank: int, ranks: int) -> slice:
    """Which of a batch's rows a process has. Fewer than there are processes are everybody's: the mean is the same."""
    return slice(rank, None, ranks) if rows >= ranks else slice(None)


def gold_windows(gold: Tensor, starts: Tensor, window: int, margin: int = 0) -> Tensor:
    """Which windows hold which gold span whole, with the margins on both sides: gold (Q, G, 2), starts (Q, W) or (W,),
    negative for none -> (Q, G, W)."""
    first, last = gold[..., 0, None], gold[..., 1, None]
    starts = starts.expand(len(gold), -1)[:, None]
    inside = (starts - margin <= first) & (last < starts + window + margin)
    return (first >= 0) & inside & (starts >= 0)


def without_padding(questions: Tensor) -> Tensor:
    """Questions (Q, M), cut to the longest: scores are computed for every column."""
    return questions[:, : int((questions > 0).any(0).nonzero().max()) + 1]


def search_loss(model: MambaLMHeadModel, batch: SearchBatch) -> Tensor:
    """-log of the share of the gold windows among every window of every crop of the batch."""
    searcher = model.searcher()
    stride = searcher.config.stride
    keys = searcher.segment_keys(segments(batch.crops, searcher.config).flatten(0, 1))
    query = searcher.ask(batch.questions).query
    n_crops = len(batch.crops)
    maxima = half_window_maxima(query, keys.flatten(0, 1).to(torch.bfloat16), stride).float()
    scores = window_scores(query, maxima.unflatten(-1, (n_crops, -1)))
    own = batch.crop[:, None] == torch.arange(n_crops, device=scores.device)
    right = own[:, None, :, None] & right_windows(batch, searcher.config)[:, :, None]
    return any_of_loss(scores.flatten(1), right.flatten(2))


def right_windows(batch: SearchBatch, config: ESIConfig) -> Tensor:
    """Which windows of its own crop hold which gold span of a question, or lie inside of it, (Q, G, W)."""
    starts = torch.arange(0, batch.crops.shape[1] - config.stride, config.stride, device=batch.gold.device)
    first, last = batch.gold[..., 0, None], batch.gold[..., 1, None]
    inside = (first >= 0) & (first <= starts) & (starts + config.window <= last + 1)
    return inside | gold_windows(batch.gold, starts, config.window)


@torch.no_grad()
def search_book(
    model: MambaLMHeadModel, book: Tensor, questions: Tensor, k: int, rows: int = 256
) -> tuple[Tensor, Tensor]:
    """Search a whole book for many questions: book (T,), questions (Q, M) -> starts and scores (Q, K), best first."""
    searcher = model.searcher()
    block = searcher.config.block
    text = torch.nn.functional.pad(book, (0, -len(book) % block))
    keys = torch.cat([searcher.segment_keys(part) for part in segments(text, searcher.config).split(rows)])
    keys = keys.flatten(0, 1).to(torch.bfloat16)
    found = []
    for part in questions.split(rows):
        search = StreamingSearch(searcher.ask(without_padding(part)).query, k, searcher.config.stride)
        for chunk in keys.split(64 * block):
            search.push(chunk)
        found.append((search.top.starts, search.top.scores))
    starts, scores = map(torch.cat, zip(*found, strict=True))
    return starts, scores
