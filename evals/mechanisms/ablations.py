"""ESI with one thing changed at a time, each trained by the recipe of the arm `esi`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mechanisms.arms import ESI, ESI_SIZES, LAYERS_BESIDE_READER, Make, Plain, answer_loss, build
from mechanisms.texts import Batch
from torch import Tensor, nn

from mamba_ssm.esi.module import Question, TrainedSearcher
from mamba_ssm.esi.reader import BidirectionalBlock, Memory
from mamba_ssm.esi.search import Query
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.reading import right_places


class WithoutContext(ESI):
    """Keys and questions are token embeddings, and so is what the reader reads."""

    @property
    def searcher(self) -> TrainedSearcher:
        assert self.model.esi is not None
        return TrainedSearcher(self.model.esi, self.model.backbone.embedding)


class MeanSearch(ESI):
    """One vector a window and one a question, the weighted mean of their tokens', instead of MaxSim."""

    def scores(self, query: Query, keys: Tensor) -> Tensor:
        with torch.autocast(keys.device.type, enabled=False):
            asked = (query.vectors * query.weights[..., None]).sum(1)
            halves = keys.float().unflatten(1, (-1, self.config.stride)).mean(2)
            windows = F.normalize(halves[:, :-1] + halves[:, 1:], dim=-1)
            scale = query.weights.sum(-1, keepdim=True)
            return torch.einsum("qr,ahr->qah", F.normalize(asked, dim=-1) * scale, windows)


class OwnTextOnly(ESI):
    """No negatives from other texts: the search's loss counts the windows of the question's own text alone."""

    def search_loss(self, batch: Batch, scores: Tensor) -> Tensor:
        own = self.own(batch, scores)
        right = self.gold(batch, torch.arange(own.shape[1], device=own.device))
        return any_of_loss(own, right[:, None])


class EvenWeights(ESI):
    """All tokens of a question weigh the same."""

    def ask(self, batch: Batch) -> Question:
        asked = super().ask(batch)
        total = asked.query.weights.sum(-1, keepdim=True)
        even = asked.mask * total / asked.mask.sum(-1, keepdim=True)
        return Question(asked.ids, asked.mask, asked.hidden, Query(asked.query.vectors, even))


class AnswerLossOnly(ESI):
    """No loss for the search: it learns through the scores that injection and copying weigh windows with."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"answer": answer_loss(self.logits(batch), batch)}


class Carried(ESI):
    """The language model starts from its state after the whole text, not from zero."""

    states = Plain.states
    seen = 0


class Span(ESI):
    """The reader also learns to point at the answer, from a loss of its own."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        assert self.model.esi is not None
        question, scores = self.searched(batch)
        windows, best = self.found(batch, scores.detach())
        memory = self.read(batch, question, windows, best)
        starts = windows * self.config.stride
        pairs = zip(
            self.model.esi.reader.span_logits(memory),
            right_places(starts, batch.gold[:, None], self.config.window),
            strict=True,
        )
        return {
            "answer": answer_loss(self.answer(batch, memory), batch),
            "search": self.search_loss(batch, scores),
            "span": torch.stack([any_of_loss(logits, right) for logits, right in pairs]).sum(),
        }

    def points_right(self, batch: Batch) -> Tensor:
        """Whether the most probable span reads as the answer does, (Q,)."""
        assert self.model.esi is not None
        question, scores = self.searched(batch)
        memory: Memory = self.read(batch, question, *self.found(batch, scores))
        spans, _ = self.model.esi.reader.best_spans(memory)
        window, first, last = (part[:, :1] for part in (spans.window, spans.first, spans.last))
        place = first + torch.arange(batch.answers.shape[1], device=first.device)
        rows = torch.arange(len(first), device=first.device)[:, None]
        told = memory.ids[rows, window, place.clamp(max=memory.ids.shape[2] - 1)].masked_fill(place > last, 0)
        return (told == batch.answers).all(1)


class LeftToRight(BidirectionalBlock):
    """The same parameters, none of which sees what comes later."""

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.dropout(self.forward_mixer(normed) + self.backward_mixer(normed))
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))


def _built(borrowed: dict[str, Tensor], **sizes: int) -> MambaLMHeadModel:
    return build(borrowed, LAYERS_BESIDE_READER, ESI_SIZES | sizes)


def _left_to_right(borrowed: dict[str, Tensor]) -> ESI:
    arm = ESI(_built(borrowed))
    assert arm.model.esi is not None
    config = arm.config
    blocks = (LeftToRight(config.d_read, config.n_heads, config.d_state) for _ in range(config.n_read))
    arm.model.esi.reader.blocks = nn.ModuleList(blocks)
    return arm


def _unread(borrowed: dict[str, Tensor]) -> ESI:
    arm = ESI(_built(borrowed))
    assert arm.model.esi is not None
    arm.model.esi.reader.blocks = nn.ModuleList()
    return arm


def _without(borrowed: dict[str, Tensor], gate: str) -> ESI:
    """A gate that is shut and stays so."""
    arm = ESI(_built(borrowed))
    arm.get_parameter(f"model.esi.injection.{gate}").data.zero_()
    arm.slow[f"model.esi.injection.{gate}"] = 0.0
    return arm


ABLATIONS: dict[str, Make] = {
    "keys_without_context": lambda borrowed: WithoutContext(_built(borrowed)),
    "keys_of_two_layers": lambda borrowed: ESI(_built(borrowed, n_enc=2)),
    "mean_instead_of_maxsim": lambda borrowed: MeanSearch(_built(borrowed)),
    "no_negatives_of_other_texts": lambda borrowed: OwnTextOnly(_built(borrowed)),
    "no_token_weights": lambda borrowed: EvenWeights(_built(borrowed)),
    "windows_of_32": lambda borrowed: ESI(_built(borrowed, window=32, top_k=16)),
    "windows_of_128": lambda borrowed: ESI(_built(borrowed, window=128, top_k=4)),
    "no_injection": lambda borrowed: _without(borrowed, "gate"),
    "no_copying": lambda borrowed: _without(borrowed, "copy_gate"),
    "no_search_loss": lambda borrowed: AnswerLossOnly(_built(borrowed)),
    "reader_left_to_right": _left_to_right,
    "windows_not_read_again": _unread,
    "carried_state": lambda borrowed: Carried(_built(borrowed)),
    "span_loss_too": lambda borrowed: Span(_built(borrowed)),
}
