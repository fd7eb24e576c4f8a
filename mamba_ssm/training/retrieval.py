"""Train the search, and run it over whole books to find what the reader is trained on.

Shapes: Q questions, A article crops, T tokens of a crop, W windows, K kept windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mamba_ssm.esi.module import segments
from mamba_ssm.esi.search import StreamingSearch, half_window_maxima, window_scores
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.losses import any_of_loss


class SearchBatch(NamedTuple):
    """Crops (A, T) of articles, questions (Q, M), and each question's crop (Q,) and gold spans in it (Q, G, 2).

    Each of its spans is to be found; where a question has fewer, the rest are -1.
    """

    crops: Tensor
    questions: Tensor
    crop: Tensor
    gold: Tensor


def search_batches(
    examples: Examples,
    n_crops: int,
    crop_tokens: int,
    max_questions: int,
    rng: np.random.Generator,
    word_dropout: float = 0.0,
    device: torch.device | str = "cpu",
) -> Iterator[SearchBatch]:
    """Endless batches of crops of distinct articles, with questions whose answers lie inside the crops.

    All are of one shape: a question comes twice where the crops have too few.

    Articles without questions are only taken where there are too few others.
    ``word_dropout`` is the share of the questions' tokens that are left out, against learning questions by heart.
    """
    n_articles = len(examples.offsets) - 1
    n_questions = min(max_questions, len(examples.questions))
    by_article = [np.flatnonzero(examples.article == a) for a in range(n_articles)]
    asked = np.array([len(rows) > 0 for rows in by_article])
    while True:
        crops, chosen, crop_of, shift = [], [], [], []
        order = rng.permutation(n_articles)
        order = order[np.argsort(~asked[order], kind="stable")]
        for place, article in enumerate(order[:n_crops]):
            text = examples.text(article)
            start = int(rng.integers(0, max(1, len(text) - crop_tokens + 1)))
            crop = text[start : start + crop_tokens]
            crops.append(np.pad(crop, (0, crop_tokens - len(crop))))
            candidates = by_article[article]
            first, last = examples.gold[candidates, 0, 0], examples.gold[candidates, 0, 1]
            candidates = candidates[(first >= start) & (last < start + crop_tokens)]
            chosen.append(candidates)
            crop_of.append(np.full(len(candidates), place))
            shift.append(np.full(len(candidates), start))
        rows, crop_rows, shifts = map(np.concatenate, (chosen, crop_of, shift))
        pick = np.resize(rng.permutation(len(rows)), n_questions)
        gold = examples.gold[rows[pick]]
        questions = examples.questions[rows[pick]]
        dropped = rng.random(questions.shape) < word_dropout
        left = np.where(dropped, 0, questions)
        questions = np.where(left.any(1, keepdims=True), left, questions)
        gold = np.where(gold < 0, -1, gold - shifts[pick, None, None])
        arrays = (np.stack(crops), questions, crop_rows[pick], gold)
        yield SearchBatch(*(torch.from_numpy(array).to(device) for array in arrays))


def gold_windows(gold: Tensor, starts: Tensor, window: int) -> Tensor:
    """Which windows hold which gold span whole: gold (Q, G, 2), starts (Q, W) or (W,) -> (Q, G, W)."""
    first, last = gold[..., 0, None], gold[..., 1, None]
    starts = starts.expand(len(gold), -1)[:, None]
    return (first >= 0) & (starts <= first) & (last < starts + window) & (starts >= 0)


def without_padding(questions: Tensor) -> Tensor:
    """Questions (Q, M), cut to the longest: scores are computed for every column."""
    return questions[:, : int((questions > 0).any(0).nonzero().max()) + 1]


def search_loss(model: MambaLMHeadModel, batch: SearchBatch) -> Tensor:
    """-log of the share of the gold windows among every window of every crop of the batch."""
    searcher = model.searcher()
    window, stride = searcher.config.window, searcher.config.stride
    keys = searcher.segment_keys(segments(batch.crops, searcher.config).flatten(0, 1))
    query = searcher.ask(batch.questions).query
    n_crops = len(batch.crops)
    maxima = half_window_maxima(query, keys.flatten(0, 1).to(torch.bfloat16), stride).float()
    scores = window_scores(query, maxima.unflatten(-1, (n_crops, -1)))
    starts = stride * torch.arange(scores.shape[-1], device=scores.device)
    own = batch.crop[:, None] == torch.arange(n_crops, device=scores.device)
    right = own[:, None, :, None] & gold_windows(batch.gold, starts, window)[:, :, None]
    return any_of_loss(scores.flatten(1), right.flatten(2))


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
