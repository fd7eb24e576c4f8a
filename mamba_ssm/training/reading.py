"""Train the reader and the language model on windows that the search found.

Shapes: Q questions, M question tokens, K windows, W tokens of a window with its margins, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import Question
from mamba_ssm.esi.reader import Memory
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.evaluate import absolute_gold, window_ids
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.retrieval import gold_windows, share

END, QUESTION, ANSWER = 0, 1, 2
Frame = tuple[list[int], list[int]]
MARKS: Frame = ([QUESTION], [ANSWER])  # what stands before a question and after it, in the default vocabulary
IGNORE = -100
MAX_ANSWER = 16
CONTEXT = 192
RANK_DECAY = 0.08  # how much less likely than the one above it the reader sees a window
WITH_GOLD = 0.85  # how often it surely sees all windows with an answer that the search found
HARD, RANKS = 0.3, 0.3  # weights of the right places, and of the order of windows, beside a teacher's places


class Taught(NamedTuple):
    """A teacher's logits for first and last token, of retrieved tokens (Q, K, W, 2) and of 'no answer here' (2,)."""

    logits: Tensor
    nothing: Tensor


Mined = Sequence[tuple[Tensor, Tensor]]
"""Starts and scores (all questions, found) of the windows that the search found, for each kind of book."""


class ReadBatch(NamedTuple):
    """What one step of training reads.

    Numbers (Q,) of the questions; questions (Q, M); windows with their margins (Q, K, W), the tokens before each window
    (Q, K, warm-up), their scores (Q, K) and first tokens in the book (Q, K); gold spans (Q, G, 2) in the book, all to
    be found, -1 where there are fewer; the first answer (Q, T), END where shorter.
    """

    numbers: Tensor
    questions: Tensor
    windows: Tensor
    before: Tensor
    scores: Tensor
    starts: Tensor
    gold: Tensor
    answers: Tensor
    taught: Taught | None


def right_places(starts: Tensor, gold: Tensor, window: int, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Which retrieved tokens begin and end each gold span, where it stands whole in its window with the margins.

    starts (Q, K), gold (Q, G, 2) -> two (Q, G, K * W + 1); the last is 'no answer here', right where nothing else is.
    """
    place = starts[..., None] + torch.arange(-margin, window + margin, device=starts.device)
    whole = gold_windows(gold, starts, window, margin)[..., None]
    firsts, lasts = (((place[:, None] == gold[..., i, None, None]) & whole).flatten(2) for i in (0, 1))
    nothing = torch.zeros_like(firsts[..., :1])
    nothing[:, 0] = ~firsts.flatten(1).any(1, keepdim=True)
    return torch.cat([firsts, nothing], 2), torch.cat([lasts, nothing], 2)


def places_of(batch: ReadBatch, config: ESIConfig) -> tuple[Tensor, Tensor]:
    """The right places of a batch."""
    return right_places(batch.starts, batch.gold, config.window, config.margin)


class ReadBatches:
    """Batches of questions with k of the windows that the search found in one of their books: a batch is a function of
    seed and step.

    ``mined``: starts and scores (all questions, found) for each kind of book; ``taught``: what a teacher makes of these
    windows. The k are drawn without repetition, likelier where they rank higher, so that the reader sees further down
    the list and does not trust the rank alone; where none of them holds the answer, 'no answer here' is right. All
    questions come before one comes again; those that are left over at the end of such an epoch wait.
    """

    def __init__(
        self,
        examples: Examples,
        mined: Mined,
        rows: int,
        k: int,
        config: ESIConfig,
        seed: Sequence[int],
        device: torch.device | str,
        taught: Sequence[Taught] | None = None,
    ) -> None:
        self.rows, self.k, self.config, self.seed, self.device, self.taught = rows, k, config, seed, device, taught
        self.ids, self.questions = (torch.from_numpy(array).to(device) for array in (examples.ids, examples.questions))
        self.gold = absolute_gold(examples).to(device)
        self.mined = [(starts.to(device), scores.to(device)) for starts, scores in mined]
        self._draws = torch.Generator(device)
        self._order = lru_cache(maxsize=1)(self._shuffled)

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> ReadBatch:
        """A process's share of a step's questions."""
        window, margin, warmup = self.config.window, self.config.margin, self.config.warmup
        epoch, place = divmod(step, len(self.questions) // self.rows)
        numbers = self._order(epoch)[place * self.rows : (place + 1) * self.rows]
        rng = np.random.default_rng((*self.seed, 0, step))
        kind = int(rng.integers(len(self.mined)))
        self._draws.manual_seed(int(rng.integers(1 << 63)))
        # Drawn for the whole step, so that a question sees the same windows in whatever process it is.
        noise, whether = self._uniform(self.rows, self.mined[kind][0].shape[1]), self._uniform(self.rows, 1)
        own = share(self.rows, rank, ranks)
        numbers, noise, whether = numbers[own], noise[own], whether[own]
        starts, scores = (found[numbers] for found in self.mined[kind])
        gold = self.gold[numbers]
        # The largest of log p + Gumbel noise are draws without repetition.
        chance = -RANK_DECAY * torch.arange(starts.shape[1], device=self.device) - torch.log(-torch.log(noise))
        sure = gold_windows(gold, starts, window, margin).any(1) & (whether < WITH_GOLD)
        order = chance.masked_fill(sure, float("inf")).topk(self.k, 1).indices.sort(1).values
        starts, scores = starts.gather(1, order), scores.gather(1, order)
        answer = gold[:, 0, :1] + torch.arange(MAX_ANSWER, device=self.device)
        last = len(self.ids) - 1
        answers = torch.where(answer <= gold[:, 0, 1:], self.ids[answer.clamp(max=last)], END)
        lesson = None
        if self.taught is not None:
            logits = self.taught[kind].logits[numbers[:, None], order].float()
            lesson = Taught(logits, self.taught[kind].nothing)
        windows, before = window_ids(self.ids, starts, window, margin), window_ids(self.ids, starts - warmup, warmup)
        return ReadBatch(numbers, self.questions[numbers], windows, before, scores, starts, gold, answers, lesson)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._draws, device=self.device).clamp(1e-9, 1 - 1e-7)

    def _shuffled(self, epoch: int) -> Tensor:
        """The order of the questions in an epoch."""
        self._draws.manual_seed(int(np.random.default_rng((*self.seed, 1, epoch)).integers(1 << 63)))
        return torch.randperm(len(self.questions), generator=self._draws, device=self.device)


def span_loss(model: MambaLMHeadModel, memory: Memory, batch: ReadBatch) -> Tensor:
    """Cross-entropy of the answers' first and last tokens among all retrieved tokens; a teacher's beside the right."""
    assert model.esi is not None
    logits, config = model.esi.reader.span_logits(memory), model.searcher().config
    right = places_of(batch, config)
    loss = any_of_loss(logits[0], right[0]) + any_of_loss(logits[1], right[1])
    return loss if batch.taught is None else HARD * loss + taught_loss(logits, batch.taught, config.margin)


def taught_loss(logits: tuple[Tensor, Tensor], taught: Taught, margin: int) -> Tensor:
    """Cross-entropy with a teacher's distributions: over places, and over windows by the mean of their best logits.

    Distillation after Hinton et al. 2015 (arXiv 1503.02531), at a temperature of 1. logits: two (Q, K * W + 1), of
    windows with ``margin`` tokens on both sides.
    """
    Q, K, W, _ = taught.logits.shape
    places = [
        _soft_cross_entropy(mine, torch.cat([his.flatten(1), nothing.expand(Q, 1)], 1))
        for mine, his, nothing in zip(logits, taught.logits.unbind(-1), taught.nothing, strict=True)
    ]
    mine = torch.stack([mine[:, :-1].view(Q, K, W) for mine in logits], -1)
    return places[0] + places[1] + RANKS * _soft_cross_entropy(_order(mine, margin), _order(taught.logits, margin))


def order_loss(model: MambaLMHeadModel, question: Question, batch: ReadBatch) -> Tensor:
    """Cross-entropy of the search's scores, of windows read as the search reads them, with a teacher's order."""
    assert batch.taught is not None
    searcher, (Q, K, _) = model.searcher(), batch.windows.shape
    margin = searcher.config.margin
    windows = _without_margins(batch.windows, margin)
    keys = searcher.segment_keys(torch.cat([batch.before, windows], 2).flatten(0, 1)).unflatten(0, (Q, K))
    near = torch.einsum("qkwr,qmr->qkmw", keys, question.query.vectors).amax(-1)
    scores = torch.einsum("qkm,qm->qk", near, question.query.weights)
    scores = scores.masked_fill(batch.starts < 0, float("-inf"))
    return _soft_cross_entropy(scores, _order(batch.taught.logits, margin))


def _order(logits: Tensor, margin: int) -> Tensor:
    """Of logits (Q, K, W, 2), those of windows (Q, K): the mean of the best places to begin and to end in each."""
    return _without_margins(logits, margin).amax(2).mean(-1)


def _without_margins(tokens: Tensor, margin: int) -> Tensor:
    """Of (Q, K, W, ...), what belongs to the windows themselves."""
    return tokens.narrow(2, margin, tokens.shape[2] - 2 * margin)


def _soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Of (Q, P) logits; -inf, where no token is, would give NaN times the teacher's 0."""
    return -(teacher.softmax(-1) * logits.float().clamp(min=-1e4).log_softmax(-1)).sum(-1).mean()


def answer_sequences(
    questions: Tensor, answers: Tensor, contexts: Tensor | None = None, frame: Frame = MARKS
) -> tuple[Tensor, Tensor]:
    """<|question|> question <|answer|> answer <|endoftext|> in a row each -> ids and targets (Q, T).

    With ``contexts`` (Q, C), text of the book stands before the question, and is to be predicted too: plain language
    modelling. T is as long as the longest of such questions and answers could need.
    """
    rows = []
    for i, (question, answer) in enumerate(zip(questions.tolist(), answers.tolist(), strict=True)):
        text = [] if contexts is None else contexts[i].tolist()
        asked = [*frame[0], *(t for t in question if t), *frame[1]]
        said = [*(t for t in answer if t), END]
        rows.append(([*text, *asked, *said[:-1]], [*text[1:], *[IGNORE] * (len(asked) - (not text)), *said]))
    width = (0 if contexts is None else contexts.shape[1]) + len(frame[0]) + questions.shape[1] + len(frame[1])
    width += answers.shape[1]
    ids = torch.tensor([ids + [END] * (width - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (width - len(targets)) for _, targets in rows])
    return ids.to(questions.device), targets.to(questions.device)


def plain_sequences(batch: ReadBatch, ids: Tensor, rows: int, frame: Frame = MARKS) -> tuple[Tensor, Tensor]:
    """The text around some of the answers, then question and answer: what a Mamba without ESI learns from. ids (T,)."""
    start = (batch.gold[:rows, 0, 0].cpu() - CONTEXT // 2).clamp(0, max(0, len(ids) - CONTEXT))
    contexts = ids[start[:, None] + torch.arange(min(CONTEXT, len(ids)))]
    return answer_sequences(batch.questions[:rows], batch.answers[:rows], contexts, frame)


def answer_loss(model: MambaLMHeadModel, memory: Memory | None, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of what the language model says, with the windows injected or without: ids and targets (Q, T)."""
    logits = model(ids).logits if memory is None else model.answer_logits(ids, memory)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)
