"""Train the reader and the language model on windows that the search found.

Shapes: Q questions, M question tokens, K windows, W tokens of a window, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.esi.reader import Memory
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.evaluate import absolute_gold, window_ids
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.retrieval import gold_windows

END, QUESTION, ANSWER = 0, 1, 2
Frame = tuple[list[int], list[int]]
MARKS: Frame = ([QUESTION], [ANSWER])  # what stands before a question and after it, in the default vocabulary
IGNORE = -100
MAX_ANSWER = 16
LEFT_OUT = 0.15
CONTEXT = 192


@dataclass(frozen=True)
class ReadBatch:
    """What one step of training reads.

    Questions (Q, M); windows (Q, K, W) with their scores (Q, K) and first tokens in the book (Q, K); gold spans
    (Q, G, 2) in the book, -1 where there are fewer; answers (Q, T), END where shorter.
    """

    questions: Tensor
    windows: Tensor
    scores: Tensor
    starts: Tensor
    gold: Tensor
    answers: Tensor


def right_places(starts: Tensor, gold: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Which retrieved tokens begin and end a gold span that stands whole in its window.

    starts (Q, K), gold (Q, G, 2) -> two (Q, K * W + 1); the last is 'no answer here', right where nothing else is.
    """
    place = starts[..., None] + torch.arange(window, device=starts.device)
    first, last = gold[:, None, None, :, 0], gold[:, None, None, :, 1]
    begin, end = starts[..., None, None], starts[..., None, None] + window
    whole = (first >= 0) & (begin >= 0) & (first >= begin) & (last < end)
    firsts = ((place[..., None] == first) & whole).any(-1).flatten(1)
    lasts = ((place[..., None] == last) & whole).any(-1).flatten(1)
    nothing = ~firsts.any(1, keepdim=True)
    return torch.cat([firsts, nothing], 1), torch.cat([lasts, nothing], 1)


def read_batches(
    examples: Examples,
    mined: Sequence[tuple[Tensor, Tensor]],
    rows: int,
    k: int,
    window: int,
    rng: np.random.Generator,
    device: torch.device | str,
) -> Iterator[ReadBatch]:
    """Endless batches of questions with k of the windows that the search found in one of their books.

    ``mined``: starts and scores (all questions, found) for each kind of book. Some windows are left out at random, so
    that the reader sees further down the list and does not trust the rank alone. Where the search missed, half of the
    time the last window becomes one that holds the answer; else 'no answer here' is right.
    """
    ids, questions, gold_of = (
        torch.from_numpy(examples.ids),
        torch.from_numpy(examples.questions),
        absolute_gold(examples),
    )
    while True:
        pick = torch.from_numpy(rng.choice(len(questions), rows, replace=False))
        starts, scores = (found[pick] for found in mined[int(rng.integers(len(mined)))])
        left_out = torch.from_numpy(rng.random(starts.shape) < LEFT_OUT)
        order = (left_out * starts.shape[1] + torch.arange(starts.shape[1])).argsort(1)[:, :k]
        starts, scores, gold = starts.gather(1, order), scores.gather(1, order), gold_of[pick]
        missed = ~gold_windows(gold, starts, window).any(1)
        mended = missed & torch.from_numpy(rng.random(rows) < 0.5)
        first, last = gold[:, 0].unbind(-1)
        room = (window - (last - first)).clamp(min=1)
        around = (first - (torch.from_numpy(rng.random(rows)) * room).long()).clamp(min=0)
        starts[mended, -1] = around[mended]
        answer = first[:, None] + torch.arange(MAX_ANSWER)
        answers = torch.where(answer <= last[:, None], ids[answer.clamp(max=len(ids) - 1)], END)
        batch = (questions[pick], window_ids(ids, starts, window), scores, starts, gold, answers)
        yield ReadBatch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def span_loss(model: MambaLMHeadModel, memory: Memory, batch: ReadBatch) -> Tensor:
    """Cross-entropy of the answer's first and last token among all retrieved tokens."""
    assert model.esi is not None
    first, last = model.esi.reader.span_logits(memory)
    right_first, right_last = right_places(batch.starts, batch.gold, memory.ids.shape[2])
    return any_of_loss(first, right_first) + any_of_loss(last, right_last)


def answer_sequences(
    questions: Tensor, answers: Tensor, contexts: Tensor | None = None, frame: Frame = MARKS
) -> tuple[Tensor, Tensor]:
    """<|question|> question <|answer|> answer <|endoftext|> in a row each -> ids and targets (Q, T).

    With ``contexts`` (Q, C), text of the book stands before the question, and is to be predicted too: plain language
    modelling.
    """
    rows = []
    for i, (question, answer) in enumerate(zip(questions.tolist(), answers.tolist(), strict=True)):
        text = [] if contexts is None else contexts[i].tolist()
        asked = [*frame[0], *(t for t in question if t), *frame[1]]
        said = [*(t for t in answer if t), END]
        rows.append(([*text, *asked, *said[:-1]], [*text[1:], *[IGNORE] * (len(asked) - (not text)), *said]))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [END] * (width - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (width - len(targets)) for _, targets in rows])
    return ids, targets


def plain_sequences(batch: ReadBatch, ids: Tensor, rows: int, frame: Frame = MARKS) -> tuple[Tensor, Tensor]:
    """The text around some of the answers, then question and answer: what a Mamba without ESI learns from. ids (T,)."""
    start = (batch.gold[:rows, 0, 0].cpu() - CONTEXT // 2).clamp(0, max(0, len(ids) - CONTEXT))
    contexts = ids[start[:, None] + torch.arange(min(CONTEXT, len(ids)))]
    return answer_sequences(batch.questions[:rows], batch.answers[:rows], contexts, frame)


def answer_loss(model: MambaLMHeadModel, memory: Memory | None, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of what the language model says, with the windows injected or without: ids and targets (Q, T)."""
    device = next(model.parameters()).device
    ids, targets = ids.to(device), targets.to(device)
    logits = model(ids).logits if memory is None else model.answer_logits(ids, memory)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)
