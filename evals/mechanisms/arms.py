"""The mechanisms that are compared: each reads texts, and gives the logits of the answers to questions about them.

Shapes: A texts, L tokens of a text, Q questions, S tokens of an answer, K windows, W tokens of one, H windows of a
text, M question tokens, R search width, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mechanisms.speaking import answer_logits, said
from mechanisms.texts import Batch
from torch import Tensor, nn

from mamba_ssm.esi.module import Question, TrainedSearcher, segments
from mamba_ssm.esi.reader import Memory
from mamba_ssm.esi.search import Query, half_window_maxima, window_scores
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.borrowed import ENCODER_RATE, TABLE_RATE, start
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.reading import IGNORE
from mamba_ssm.training.retrieval import gold_windows

SSM = {"d_state": 8}
ESI_SIZES = {"n_enc": 1, "d_state": 8, "d_read": 128, "n_read": 2}
LAYERS = 6
LAYERS_BESIDE_READER = 4  # the reader has about the parameters of two
HEADS = 4
WEIGHTED_TOKENS = 8


def build(borrowed: dict[str, Tensor], n_layer: int, esi: dict[str, int] | None = None) -> MambaLMHeadModel:
    """A model whose token table (V, D) and token weights (V,) are borrowed, and whose first layer starts silent."""
    vocab_size, d_model = borrowed["table"].shape
    model = MambaLMHeadModel(MambaConfig(d_model, n_layer=n_layer, vocab_size=vocab_size, ssm_cfg=SSM, esi=esi))
    start(model, borrowed, (esi or ESI_SIZES)["n_enc"])
    if model.esi is not None:
        # There is no checkpoint whose logits a gate of zero would keep, and few steps to open one.
        with torch.no_grad():
            model.esi.injection.gate.fill_(1.0)
            model.esi.injection.copy_gate.fill_(1.0)
    return model


class Arm(nn.Module):
    """``slow`` maps prefixes of parameters to factors on their learning rate, 0 to freeze."""

    def __init__(self, model: MambaLMHeadModel) -> None:
        super().__init__()
        self.model = model
        self.slow = {"model.backbone.embedding": TABLE_RATE}

    def logits(self, batch: Batch) -> Tensor:
        """Logits (Q, S, V) of the answers and their ends, each answer's tokens given up to the one predicted."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"answer": answer_loss(self.logits(batch), batch)}


def answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    targets = said(batch.questions, batch.answers).targets
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)


class Plain(Arm):
    """Reads a text whole, then question and answer from the state that it left.

    ``seen``: only so many last tokens are read, all if it is 0. The state may be one of attention, too.
    """

    seen = 0

    def states(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """Each question's states to start from, one a layer: those after its text."""
        _, states = self.model.backbone(batch.texts[:, -self.seen :], return_states=True)
        return [tuple(part[batch.text] for part in state) for state in states]

    def logits(self, batch: Batch) -> Tensor:
        return answer_logits(self.model, said(batch.questions, batch.answers), self.states(batch))


class Attention(nn.Module):
    """Causal attention in a mixer's place, without positions, as in Jamba (Lieber et al. 2024, arXiv 2403.19887).

    Its state is the keys and values (B, heads, L, D / heads) of all that was read: it grows with the text.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        hidden: Tensor,
        inference_params: None = None,
        initial_state: tuple[Tensor, Tensor] | None = None,
        return_state: bool = False,
    ) -> Any:
        """hidden (B, L, D) -> (B, L, D), and with ``return_state`` the state."""
        assert inference_params is None  # nothing is cached here
        q, k, v = self.qkv(hidden).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if initial_state is None:
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = (torch.cat([before, new], 2) for before, new in zip(initial_state, (k, v), strict=True))
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.tril(k.shape[2] - q.shape[2]))
        out = self.out_proj(found.transpose(1, 2).flatten(2))
        return (out, (k, v)) if return_state else out


def hybrid(model: MambaLMHeadModel, layers: tuple[int, ...]) -> Plain:
    """A plain arm with attention in the place of these layers' mixers."""
    for layer in layers:
        model.backbone.layers[layer].mixer = Attention(model.config.d_model)
    return Plain(model)


class Searching(Arm):
    """What the arms share that search windows with ESI's search, and learn it from its own loss."""

    def __init__(self, model: MambaLMHeadModel) -> None:
        super().__init__(model)
        assert model.esi is not None
        self.config = model.esi.config
        self.slow |= {f"model.backbone.layers.{i}.": ENCODER_RATE for i in range(self.config.n_enc)}

    @property
    def searcher(self) -> TrainedSearcher:
        assert self.model.esi is not None
        return TrainedSearcher(self.model.esi, self.model.encode)

    def keys(self, batch: Batch) -> Tensor:
        """(A, L, R)"""
        keys = self.searcher.segment_keys(segments(batch.texts, self.config).flatten(0, 1))
        return keys.unflatten(0, (len(batch.texts), -1)).flatten(1, 2)

    def ask(self, batch: Batch) -> Question:
        return self.searcher.ask(batch.questions)

    def scores(self, query: Query, keys: Tensor) -> Tensor:
        """Of every window of every text: keys (A, L, R) -> (Q, A, H)."""
        # Autocast would round the sums, and make ties of them.
        with torch.autocast(keys.device.type, enabled=False):
            maxima = half_window_maxima(query, keys.flatten(0, 1), self.config.stride).float()
            return window_scores(query, maxima.unflatten(-1, (len(keys), -1)))

    def gold(self, batch: Batch, windows: Tensor) -> Tensor:
        """Which windows (H,) or (Q, K), by number, hold the answer: (Q, H) or (Q, K)."""
        return gold_windows(batch.gold[:, None], windows * self.config.stride, self.config.window)[:, 0]

    def search_loss(self, batch: Batch, scores: Tensor) -> Tensor:
        """-log of the share of the gold windows among all windows of all texts."""
        right = torch.zeros_like(scores, dtype=torch.bool)
        every = torch.arange(scores.shape[-1], device=scores.device)
        right[torch.arange(len(right), device=scores.device), batch.text] = self.gold(batch, every)
        return any_of_loss(scores.flatten(1), right.flatten(1)[:, None])

    def searched(self, batch: Batch) -> tuple[Question, Tensor]:
        question = self.ask(batch)
        return question, self.scores(question.query, self.keys(batch).to(torch.bfloat16))

    def own(self, batch: Batch, scores: Tensor) -> Tensor:
        """The scores (Q, H) of the windows of each question's own text, of (Q, A, H)."""
        return scores[torch.arange(len(scores), device=scores.device), batch.text]

    def window_ids(self, batch: Batch, windows: Tensor) -> Tensor:
        """Windows (Q, K) by number -> their tokens (Q, K, W)."""
        return batch.texts.unfold(1, self.config.window, self.config.stride)[batch.text[:, None], windows]

    def read(self, batch: Batch, question: Question, windows: Tensor, scores: Tensor) -> Any:
        """What answering needs of windows (Q, K), by number and best first, with scores (Q, K)."""
        raise NotImplementedError

    def answer(self, batch: Batch, memory: Any) -> Tensor:
        """Logits (Q, S, V) from what was read."""
        raise NotImplementedError

    def found(self, batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The best windows of each question's own text, (Q, K) by number, and their scores."""
        best = self.own(batch, scores).topk(self.config.top_k, 1)
        return best.indices, best.values

    def logits(self, batch: Batch) -> Tensor:
        question, scores = self.searched(batch)
        return self.answer(batch, self.read(batch, question, *self.found(batch, scores)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        question, scores = self.searched(batch)
        memory = self.read(batch, question, *self.found(batch, scores.detach()))
        return {
            "answer": answer_loss(self.answer(batch, memory), batch),
            "search": self.search_loss(batch, scores),
        }


class ESI(Searching):
    """As shipped: the windows are read beside the question, attended to, and copied from."""

    def read(self, batch: Batch, question: Question, windows: Tensor, scores: Tensor) -> Memory:
        return self.searcher.read(question, self.window_ids(batch, windows), scores)

    def states(self, batch: Batch) -> list[tuple[Tensor, ...]] | None:
        """What the language model starts from."""
        return None

    def answer(self, batch: Batch, memory: Memory) -> Tensor:
        assert self.model.esi is not None
        injection = self.model.esi.injection
        return answer_logits(
            self.model,
            said(batch.questions, batch.answers),
            self.states(batch),
            self.config.n_enc,
            lambda x: injection(x, memory),
            lambda logits, hidden: injection.copy(logits, hidden, memory),
        )


class StateInjection(Searching):
    """The windows' hidden states run through the other layers, the best last: the state that question and answer
    start from there."""

    def __init__(self, model: MambaLMHeadModel) -> None:
        super().__init__(model)
        assert model.esi is not None
        del model.esi.reader, model.esi.injection

    def read(self, batch: Batch, question: Question, windows: Tensor, scores: Tensor) -> list[Any]:
        hidden = self.model.encode(self.window_ids(batch, windows.flip(1)).flatten(0, 1))
        states: list[Any] = [None] * self.config.n_enc
        self.model.backbone.forward_layers(
            hidden.unflatten(0, windows.shape).flatten(1, 2), start=self.config.n_enc, new_states=states
        )
        return states

    def answer(self, batch: Batch, memory: list[Any]) -> Tensor:
        return answer_logits(self.model, said(batch.questions, batch.answers), memory, self.config.n_enc)


class WeightedSum(Searching):
    """The original idea, repaired: of the tokens that match the question best, the softmax-weighted sum of hidden
    states is added to the states of question and answer.

    Repaired: keys and what is added have context, the temperature and the tokens' weights are learned, and a loss of
    its own teaches the search to find the answer's tokens.
    """

    def __init__(self, model: MambaLMHeadModel) -> None:
        super().__init__(model)
        assert model.esi is not None
        del model.esi.reader, model.esi.injection
        self.out = nn.Linear(model.config.d_model, model.config.d_model, bias=False)
        nn.init.xavier_uniform_(self.out.weight)

    def scores(self, query: Query, keys: Tensor) -> Tensor:
        """Of every token of every text: keys (A, L, R) -> (Q, A, L)."""
        with torch.autocast(keys.device.type, enabled=False):
            asked = (query.vectors * query.weights[..., None]).sum(1)
            return torch.einsum("qr,alr->qal", asked, keys.float())

    def gold(self, batch: Batch, windows: Tensor) -> Tensor:
        """Which tokens are of the answer."""
        first, last = batch.gold[:, :1], batch.gold[:, 1:]
        return (windows >= first) & (windows <= last)

    def found(self, batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
        best = self.own(batch, scores).topk(WEIGHTED_TOKENS, 1)
        return best.indices, best.values

    def read(self, batch: Batch, question: Question, windows: Tensor, scores: Tensor) -> Tensor:
        """-> (Q, D). Each token is read after the tokens of its segment that came before it."""
        ids = segments(batch.texts, self.config)
        hidden = self.model.encode(ids.flatten(0, 1))[:, self.config.warmup :]
        hidden = hidden.unflatten(0, ids.shape[:2]).flatten(1, 2)[batch.text[:, None], windows]
        return (scores.softmax(-1)[..., None].to(hidden.dtype) * hidden).sum(1)

    def answer(self, batch: Batch, memory: Tensor) -> Tensor:
        added = self.out(memory)[:, None]
        return answer_logits(
            self.model, said(batch.questions, batch.answers), None, self.config.n_enc, lambda x: added.expand_as(x)
        )


Make = Callable[[dict[str, Tensor]], Arm]

ARMS: dict[str, Make] = {
    "plain": lambda borrowed: Plain(build(borrowed, LAYERS)),
    "hybrid_1": lambda borrowed: hybrid(build(borrowed, LAYERS), (3,)),
    "hybrid_2": lambda borrowed: hybrid(build(borrowed, LAYERS + 1), (2, 5)),
    "esi": lambda borrowed: ESI(build(borrowed, LAYERS_BESIDE_READER, ESI_SIZES)),
    "state_injection": lambda borrowed: StateInjection(build(borrowed, LAYERS, ESI_SIZES)),
    "weighted_sum": lambda borrowed: WeightedSum(build(borrowed, LAYERS, ESI_SIZES)),
}
"""By name, each made from a borrowed token table and token weights."""
