"""Recall of evidence, and exact match and F1 of answers, on tokenised examples: for development, while training.

Shapes: Q questions, K windows, W tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.metrics import best_of, exact_match, f1
from mamba_ssm.training.retrieval import gold_windows, search_book

SHELF = 40  # articles in the larger of the two kinds of book


def mine(model: MambaLMHeadModel, examples: Examples, articles_per_book: int, k: int) -> tuple[Tensor, Tensor]:
    """Search each question's book, of so many neighbouring articles: starts (Q, K) in ``examples.ids``, and scores."""
    device = next(model.parameters()).device
    ids, questions = torch.from_numpy(examples.ids), torch.from_numpy(examples.questions)
    starts = torch.full((len(questions), k), -1, dtype=torch.long)
    scores = torch.full((len(questions), k), float("-inf"))
    n_articles = len(examples.offsets) - 1
    for first in range(0, n_articles, articles_per_book):
        last = min(first + articles_per_book, n_articles)
        rows = torch.from_numpy((examples.article >= first) & (examples.article < last)).nonzero().squeeze(1)
        origin, end = int(examples.offsets[first]), int(examples.offsets[last])
        if len(rows) == 0:
            continue
        found, score = search_book(model, ids[origin:end].to(device), questions[rows].to(device), k)
        starts[rows] = torch.where(found < 0, -1, found + origin).cpu()
        scores[rows] = score.cpu()
    return starts, scores


def absolute_gold(examples: Examples) -> Tensor:
    """Gold spans (Q, A, 2) in tokens of ``examples.ids``."""
    gold = torch.from_numpy(examples.gold)
    return torch.where(gold < 0, -1, gold + torch.from_numpy(examples.offsets[examples.article])[:, None, None])


def recall(starts: Tensor, gold: Tensor, window: int, ks: Sequence[int]) -> list[float]:
    """Share of questions one of whose first k windows holds a gold span."""
    hit = gold_windows(gold, starts, window).any(1)
    return [hit[:, :k].any(1).float().mean().item() for k in ks]


def window_ids(ids: Tensor, starts: Tensor, window: int, margin: int = 0) -> Tensor:
    """Tokens of windows with their margins: ids (T,), starts (Q, K), -1 for none -> (Q, K, W), 0 where nothing is."""
    place = starts[..., None] + torch.arange(-margin, window + margin, device=starts.device)
    inside = (starts[..., None] >= 0) & (place >= 0) & (place < len(ids))
    return torch.where(inside, ids[place.clamp(0, len(ids) - 1)], 0)


@torch.no_grad()
def answer_quality(
    model: MambaLMHeadModel,
    examples: Examples,
    starts: Tensor,
    scores: Tensor,
    decode: Callable[[list[int]], str],
    rows: Tensor,
    batch: int = 128,
) -> tuple[float, float]:
    """Exact match and F1 of the most probable span in the given windows, over the questions ``rows``."""
    searcher, device = model.searcher(), next(model.parameters()).device
    config = searcher.config
    assert model.esi is not None
    ids, gold = torch.from_numpy(examples.ids), absolute_gold(examples)
    matches, f1s = [], []
    for part in rows.split(batch):
        windows = window_ids(ids, starts[part], config.window, config.margin)
        question = searcher.ask(torch.from_numpy(examples.questions)[part].to(device))
        memory = searcher.read(question, windows.to(device), scores[part].to(device))
        assert memory is not None
        spans, _ = model.esi.reader.best_spans(memory)
        for row, w, f, last in zip(
            part.tolist(), *(x[:, 0].tolist() for x in (spans.window, spans.first, spans.last)), strict=True
        ):
            begin = int(starts[row, w]) - config.margin
            said = decode(ids[begin + f : begin + last + 1].tolist())
            truths = [decode(ids[a : b + 1].tolist()) for a, b in gold[row].tolist() if a >= 0]
            matches.append(best_of(exact_match, said, truths))
            f1s.append(best_of(f1, said, truths))
    return sum(matches) / len(matches), sum(f1s) / len(f1s)


def quality(
    model: MambaLMHeadModel,
    examples: Examples,
    articles_per_book: int,
    decode: Callable[[list[int]], str] | None,
    rows: Tensor | None = None,
    ks: Sequence[int] = (1, 8),
) -> dict[str, float]:
    """Recall of evidence at ``ks`` in books of so many articles; with ``decode`` exact match and F1 of the answers.

    Over the questions ``rows``, by default all.
    """
    config, gold = model.searcher().config, absolute_gold(examples)
    rows = torch.arange(len(gold)) if rows is None else rows
    starts, scores = mine(model, examples, articles_per_book, max(*ks, config.top_k))
    shares = recall(starts[rows], gold[rows], config.window, ks)
    found = {f"recall@{k}": share for k, share in zip(ks, shares, strict=True)}
    if decode is not None:
        best = starts[:, : config.top_k], scores[:, : config.top_k]
        found["exact_match"], found["f1"] = answer_quality(model, examples, *best, decode, rows)
    return found
