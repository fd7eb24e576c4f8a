"""Read the few retrieved windows in both directions, beside the question, and point at the answer in them.

Shapes: B batch, K windows, W tokens of a window, M question tokens, D model width, E reader width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.layer_norm import RMSNorm

if TYPE_CHECKING:
    from mamba_ssm.esi.module import Question

PAD = 0
MAX_ANSWER = 24
DROPOUT = 0.15
FIT_SHARE = 0.6  # of how well a window fits in what windows are ranked by; chosen on the development articles
RANKED_FIRST = 2  # windows that an answer may lie in wherever the search has them; chosen there, too
HEADING_SHARE = 0.5  # of what headings add to a score, in the logits of an answer; chosen on development articles, too


@dataclass(frozen=True)
class Memory:
    """Retrieved windows, read: token ids (B, K, W), states (B, K, W, E), scores (B, K; -inf where no window is).

    ``gains`` (B, K) is what headings added to the scores; the reader sees no heading.
    """

    ids: Tensor
    states: Tensor
    scores: Tensor
    gains: Tensor | None = None


@dataclass(frozen=True)
class Spans:
    """The best answers: window, first and last token (B, T) each, and their probabilities (B, T), best first."""

    window: Tensor
    first: Tensor
    last: Tensor
    probability: Tensor


class BidirectionalBlock(nn.Module):
    """x + Mamba(x) left to right + Mamba(x) right to left, then self-attention: (B, L, E) -> (B, L, E).

    While training, parts of what is added are dropped.
    """

    def __init__(self, d_read: int, n_heads: int, d_state: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = RMSNorm(d_read)
        self.forward_mixer = Mamba(d_read, d_state=d_state)
        self.backward_mixer = Mamba(d_read, d_state=d_state)
        self.attention_norm = RMSNorm(d_read)
        self.qkv = nn.Linear(d_read, 3 * d_read, bias=False)
        self.out = nn.Linear(d_read, d_read, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.dropout(self.forward_mixer(normed) + self.backward_mixer(normed.flip(1)).flip(1))
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.dropout(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class WindowReader(nn.Module):
    """Contextual states of retrieved windows given the question, and the logits of an answer's first and last token."""

    N_FEATURES = 4
    calibration: Tensor
    least_score: Tensor

    def __init__(self, d_model: int, config: ESIConfig) -> None:
        super().__init__()
        self.inp = nn.Linear(d_model, config.d_read, bias=False)
        self.features = nn.Linear(self.N_FEATURES, config.d_read)
        self.role = nn.Parameter(torch.zeros(2, config.d_read))
        self.blocks = nn.ModuleList(
            BidirectionalBlock(config.d_read, config.n_heads, config.d_state) for _ in range(config.n_read)
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.norm = RMSNorm(config.d_read)
        self.span = nn.Linear(config.d_read, 2)
        self.score_weight = nn.Parameter(torch.tensor([0.3, 0.3]))
        self.no_answer = nn.Parameter(torch.zeros(2))
        self.register_buffer("calibration", torch.tensor([0.0, 1.0]))
        self.register_buffer("least_score", torch.tensor(-math.inf))

    def forward(self, question: Question, windows: Tensor, window_ids: Tensor, keys: Tensor, scores: Tensor) -> Memory:
        """windows (B, K, W, D) of window_ids (B, K, W), their keys (B, K, W, R) and scores (B, K) -> Memory."""
        query, mask = question.query, question.mask
        B, K, W = window_ids.shape
        same = (window_ids[..., None] == question.ids[:, None, None]) & mask[:, None, None]
        share = (query.weights / query.weights.sum(-1, keepdim=True))[:, None, None]
        near = torch.einsum("bkwr,bmr->bkwm", keys, query.vectors.to(keys.dtype)).masked_fill(
            ~mask[:, None, None], -1.0
        )
        features = torch.stack(
            [
                same.any(-1).float(),
                (same * share).amax(-1) * 4.0,
                near.amax(-1).float(),
                scores.clamp(min=0.0)[..., None].expand(B, K, W) * 0.1,
            ],
            -1,
        )
        # The search learns from its own loss alone: what suits the reader's features might bend its ranking.
        text = self.inp(windows) + self.features(features.detach().to(windows.dtype)) + self.role[1]
        asked = (self.inp(question.hidden) + self.role[0])[:, None].expand(B, K, -1, -1)
        x = self.dropout(torch.cat([asked, text], 2).flatten(0, 1))
        for block in self.blocks:
            x = block(x)
        return Memory(window_ids, self.norm(x[:, -W:]).unflatten(0, (B, K)), scores)

    def span_logits(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Logits of the answer's first and of its last token: two (B, K * W + 1), the last place 'no answer here'."""
        # Of no window's score, -inf, the gradient would be NaN.
        scores = memory.scores.masked_fill(memory.scores == float("-inf"), 0.0)
        logits = self.span(memory.states).float() + (scores[..., None] * self.score_weight)[:, :, None]
        if memory.gains is not None:  # from the best one's down, so that "no answer here" is as likely beside it
            gains = memory.gains - memory.gains.amax(-1, keepdim=True)
            logits = logits + HEADING_SHARE * gains[..., None, None]
        logits = logits.masked_fill((memory.ids == PAD)[..., None], float("-inf"))
        empty = self.no_answer.expand(len(logits), 1, 2).float()
        first, last = torch.cat([logits.flatten(1, 2), empty], 1).unbind(-1)
        return first, last

    def ranking(self, memory: Memory, fits: Tensor, own: Tensor) -> Tensor:
        """What windows are ranked by, (B, K): the logits of the best places to begin and end in each, and how well it
        fits (B, K). ``own`` (B, K, W): which tokens are the window's, and no margin's."""
        shape, inf = memory.ids.shape, float("inf")
        logits = (each[:, :-1].view(shape).masked_fill(~own, -inf) for each in self.span_logits(memory))
        first, last = (each.amax(-1) for each in logits)
        return (first + last) / 2 + FIT_SHARE * fits

    def answering(self, memory: Memory, ranking: Tensor, k: int) -> Memory:
        """What an answer is taken from: the first k windows, and the RANKED_FIRST of the highest ranking (B, K).

        The others keep their places, but not their tokens.
        """
        above = ranking.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        left_out = (torch.arange(ranking.shape[1], device=ranking.device) >= k) & (above >= RANKED_FIRST)
        gains = None if memory.gains is None else memory.gains.masked_fill(left_out, float("-inf"))
        return replace(memory, ids=memory.ids.masked_fill(left_out[..., None], PAD), gains=gains)

    def tells(self, ranking: Tensor) -> bool:
        """Whether the best of a question's windows, ranked (K,), fits it as those do that hold an answer.

        ``least_score`` is below 95% of them; scripts/calibrate.py sets it.
        """
        return bool(ranking.amax() >= self.least_score)

    def confidence(self, probability: Tensor) -> Tensor:
        """How often an answer of this probability is right (Platt 1999); scripts/calibrate.py fits the two numbers."""
        offset, slope = self.calibration
        return torch.sigmoid(offset + slope * probability.logit(eps=1e-6))

    def best_spans(self, memory: Memory, n: int = 1, max_tokens: int = MAX_ANSWER) -> tuple[Spans, Tensor]:
        """The n most probable spans, each inside one window, and the probability (B,) that none is an answer."""
        first, last = self.span_logits(memory)
        first, last = first.log_softmax(-1), last.log_softmax(-1)
        nothing = (first[:, -1] + last[:, -1]).exp()
        B, K, W = memory.ids.shape
        pairs = first[:, :-1].view(B, K, W, 1) + last[:, :-1].view(B, K, 1, W)
        place = torch.arange(W, device=pairs.device)
        length = place - place[:, None]
        pairs = pairs.masked_fill((length < 0) | (length >= max_tokens), float("-inf"))
        best = pairs.flatten(1).topk(min(n, K * W * W), 1)
        window, rest = best.indices // (W * W), best.indices % (W * W)
        return Spans(window, rest // W, rest % W, best.values.exp()), nothing
