"""Answer by generating: after replaying the windows that were found, without training, or after reading the whole text.

For checkpoints without ESI weights the search is by their own embeddings. The windows that it finds are reranked by
how well the model predicts the question after each (as UPR, Sachan et al. 2022, arXiv 2204.07496), and the best are
read in the book's order, from a fresh state, right before the question: a recurrent state holds best what it read last.

Shapes: B windows, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_ssm.utils.generation import InferenceParams

Ids = list[int]
RERANK_BATCH = 8  # logits of a few windows at a time, for vocabularies are large
CHUNK = 2048


@torch.inference_mode()
def question_likelihood(model: Any, windows: Sequence[Ids], lead: Ids, question: Ids) -> list[float]:
    """Mean log-probability of the question's tokens after each window and ``lead``."""
    device = model.lm_head.weight.device
    asked = lead + question
    wanted = torch.tensor(question, device=device)
    scores: list[float] = []
    for i in range(0, len(windows), RERANK_BATCH):
        part = windows[i : i + RERANK_BATCH]
        length = max(map(len, part))
        pads = [length - len(ids) for ids in part]
        rows = torch.tensor([[0] * pad + ids + asked for pad, ids in zip(pads, part, strict=True)], device=device)
        real = torch.arange(rows.shape[1], device=device) >= torch.tensor(pads, device=device)[:, None]
        logits = model(rows, num_last_tokens=len(question) + 1, attention_mask=real).logits[:, :-1]
        likely = logits.float().log_softmax(-1).gather(2, wanted.expand(len(part), -1)[..., None])
        scores += likely.mean((1, 2)).tolist()
    return scores


class Context:
    """A model's state after what it has read so far."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.params = InferenceParams(max_seqlen=2**62, max_batch_size=1)

    @torch.inference_mode()
    def read(self, ids: Tensor) -> Tensor:
        """Read ids (T,), T > 0, in bounded memory -> logits (V,) of the next token."""
        for chunk in ids[None].split(CHUNK, 1):
            logits = self.model(chunk, inference_params=self.params, num_last_tokens=1).logits
            self.params.seqlen_offset += chunk.shape[1]
        return logits[0, -1, : self.model.config.vocab_size].float()

    def fork(self) -> Context:
        """The same state, to go on from twice."""
        other = Context(self.model)
        other.params = copy.deepcopy(self.params)
        return other

    def generate(
        self, prompt: Ids, limit: int, end: int | None, decode: Callable[[Iterable[int]], str]
    ) -> tuple[str, float]:
        """The likeliest continuation of the prompt, greedily, up to ``end``, a line's end or ``limit`` tokens.

        Returns the text, and the geometric mean of its tokens' probabilities.
        """
        device = self.model.lm_head.weight.device
        said: Ids = []
        total = 0.0
        logits = self.read(torch.tensor(prompt, device=device))
        for _ in range(limit):
            token = int(logits.argmax())
            if token == end:
                break
            total += float(logits.log_softmax(-1)[token])
            said.append(token)
            if "\n" in decode(said).lstrip():
                break
            logits = self.read(torch.tensor([token], device=device))
        text = (decode(said).strip().splitlines() or [""])[0].strip()
        return text, math.exp(total / len(said)) if said else 0.0
