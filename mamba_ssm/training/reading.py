"""Train the reader and the language model on windows that the search found.

Shapes: Q questions, M question tokens, K windows, W tokens of a window, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.esi.reader import Memory
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.losses import any_of_loss

END, QUESTION, ANSWER = 0, 1, 2
IGNORE = -100


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


def span_loss(model: MambaLMHeadModel, memory: Memory, batch: ReadBatch) -> Tensor:
    """Cross-entropy of the answer's first and last token among all retrieved tokens."""
    assert model.esi is not None
    first, last = model.esi.reader.span_logits(memory)
    right_first, right_last = right_places(batch.starts, batch.gold, memory.ids.shape[2])
    return any_of_loss(first, right_first) + any_of_loss(last, right_last)


def answer_sequences(questions: Tensor, answers: Tensor, contexts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """<|question|> question <|answer|> answer <|endoftext|> in a row each -> ids and targets (Q, T).

    With ``contexts`` (Q, C), text of the book stands before the question, and is to be predicted too: plain language
    modelling.
    """
    rows = []
    for i, (question, answer) in enumerate(zip(questions.tolist(), answers.tolist(), strict=True)):
        text = [] if contexts is None else contexts[i].tolist()
        asked = [QUESTION, *(t for t in question if t), ANSWER]
        said = [*(t for t in answer if t), END]
        rows.append(([*text, *asked, *said[:-1]], [*text[1:], *[IGNORE] * (len(asked) - (not text)), *said]))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [END] * (width - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (width - len(targets)) for _, targets in rows])
    return ids, targets


def answer_loss(model: MambaLMHeadModel, memory: Memory | None, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of what the language model says, with the windows injected or without: ids and targets (Q, T)."""
    logits = model(ids).logits if memory is None else model.answer_logits(ids, memory)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)
