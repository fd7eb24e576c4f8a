"""The language model's part, the same in all arms: <|question|> question <|answer|> answer, and the answer's logits.

Shapes: Q questions, M tokens of a question, S of an answer with its end, T of both, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mechanisms.texts import ANSWER_TOKENS, QUESTION_TOKENS
from torch import Tensor

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.reading import ANSWER, IGNORE, QUESTION

WIDTH = -(-(QUESTION_TOKENS + ANSWER_TOKENS + 2) // 8) * 8  # kernels of attention like lengths in eights


@dataclass(frozen=True)
class Said:
    """ids (Q, T); where each token of the answer and its end is predicted (Q, S); these tokens (Q, S), else IGNORE."""

    ids: Tensor
    at: Tensor
    targets: Tensor


def said(questions: Tensor, answers: Tensor) -> Said:
    """questions (Q, M), answers (Q, S - 1), 0 where shorter -> Said. An answer ends with <|endoftext|>, which is 0."""
    asked, told = ((part != 0).sum(1, keepdim=True) for part in (questions, answers))
    slots = torch.arange(answers.shape[1] + 1, device=answers.device)
    ids = questions.new_zeros(len(questions), WIDTH)
    ids[:, 0] = QUESTION
    ids[:, 1 : questions.shape[1] + 1] = questions
    at = 1 + asked + slots
    ids.scatter_(1, at[:, :1], ANSWER)
    ids.scatter_(1, at[:, 1:], answers)
    targets = torch.nn.functional.pad(answers, (0, 1)).masked_fill(slots > told, IGNORE)
    return Said(ids, at, targets)


def answer_logits(
    model: MambaLMHeadModel,
    said: Said,
    states: Sequence[Any] | None = None,
    inject_at: int = 0,
    inject: Callable[[Tensor], Tensor] | None = None,
    copy: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits (Q, S, V) of the answer.

    ``states``: one a layer to start from, or None for a layer that starts from zero. ``inject`` gives what to add to
    the states (Q, T, D) before layer ``inject_at``, ``copy`` the logits from logits and last states (Q, S, D).
    """
    backbone = model.backbone
    lower, upper = (None, None) if states is None else (states[:inject_at], states[inject_at:])
    embedded = backbone.embedding(said.ids)
    hidden, residual = backbone.forward_layers(embedded, stop=inject_at, states=lower)
    if inject is not None:
        hidden = hidden + inject((hidden + residual).to(embedded.dtype)).to(hidden.dtype)
    hidden = backbone.final_norm(*backbone.forward_layers(hidden, residual, start=inject_at, states=upper))
    hidden = hidden.gather(1, said.at[..., None].expand(-1, -1, hidden.shape[-1]))
    logits = model.lm_head(hidden)
    return logits if copy is None else copy(logits, hidden)
