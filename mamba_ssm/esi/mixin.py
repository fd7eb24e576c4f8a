"""What a language model gains from ESI: a searcher, and a forward pass that sees what was found.

Shapes: B batch, L length, V vocabulary, D model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import ESI, EmbeddingSearcher, Searcher, TrainedSearcher
from mamba_ssm.esi.reader import Memory
from mamba_ssm.esi.stream import ESIStream

if TYPE_CHECKING:
    from mamba_ssm.utils.generation import InferenceParams

STREAM = "esi"
"""The key of the stream in InferenceParams.key_value_memory_dict."""


class ESIMixin:
    """For a model with ``backbone``, ``lm_head`` and ``esi``, None in a checkpoint that was never trained with ESI."""

    backbone: Any
    lm_head: nn.Module
    esi: ESI | None

    def searcher(self) -> Searcher:
        """The trained search, or without ESI weights the one that needs no training."""
        if self.esi is None:
            return EmbeddingSearcher(self.backbone.embedding.weight.detach(), ESIConfig())
        return TrainedSearcher(self.esi, self.encode)

    def encode(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> hidden states (B, L, D) of ESI's encoder, the first n_enc layers, from a zero state."""
        assert self.esi is not None
        hidden = self.backbone.embedding(input_ids)
        out, residual = self.backbone.forward_layers(hidden, stop=self.esi.config.n_enc)
        return (out + residual).to(hidden.dtype)  # the residual may be fp32 in a model of half precision

    def stream(self, question_ids: Tensor, inference_params: InferenceParams | None) -> ESIStream:
        """The stream of the text that ``inference_params`` caches, begun anew where the text begins."""
        if inference_params is None:
            return ESIStream(self.searcher(), question_ids)
        cache = inference_params.key_value_memory_dict
        if inference_params.seqlen_offset == 0 or STREAM not in cache:
            cache[STREAM] = ESIStream(self.searcher(), question_ids)
        inference_params.check_unmoved(STREAM, self.backbone.embedding.weight, cache[STREAM].question.ids.device)
        return cache[STREAM]

    def forward_injected(
        self, input_ids: Tensor, runs: list[tuple[slice, Memory | None]], num_last_tokens: int = 0, **kwargs: Any
    ) -> Tensor:
        """input_ids (B, L) -> logits, each run of positions injected with, and free to copy from, its windows."""
        assert self.esi is not None
        injection, n_enc = self.esi.injection, self.esi.config.n_enc
        embedded = self.backbone.embedding(input_ids)
        hidden, residual = self.backbone.forward_layers(embedded, stop=n_enc, **kwargs)
        x = (hidden + residual).to(embedded.dtype)
        added = [torch.zeros_like(x[:, at]) if memory is None else injection(x[:, at], memory) for at, memory in runs]
        hidden, residual = self.backbone.forward_layers(
            hidden + torch.cat(added, 1).to(hidden.dtype), residual, start=n_enc, **kwargs
        )
        hidden = self.backbone.final_norm(hidden, residual, num_last_tokens)
        # One product for all positions: run by run it would round otherwise than without a question.
        logits = self.lm_head(hidden)
        skipped = input_ids.shape[1] - hidden.shape[1]
        out = []
        for at, memory in runs:
            part = slice(max(at.start - skipped, 0), max(at.stop - skipped, 0))
            out.append(logits[:, part] if memory is None else injection.copy(logits[:, part], hidden[:, part], memory))
        return torch.cat(out, 1)

    def answer_logits(self, input_ids: Tensor, memory: Memory) -> Tensor:
        """Logits (B, L, V) of a question and its answer, with the same windows injected at every position."""
        return self.forward_injected(input_ids, [(slice(0, input_ids.shape[1]), memory)])
