"""The prompt that a batch is reading: one at a time, in parts, each of which continues the one before.

On a GPU a part of a prompt is bound by launches, so it is replayed as a CUDA graph. A graph for each length would be
captured anew for most of them; so a part is padded in front to the next of a few lengths. Which one depends on the part
alone, so it is computed alike whoever else is there.

Shapes: L length, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mamba_ssm.utils.cuda_graph import capture
from mamba_ssm.utils.generation import InferenceParams

PROMPT_TOKENS = 512  # of prompts, read between two steps at most: more of them, and the other texts would wait long
ENDLESS = 2**62  # tokens: a state does not grow with the text
LENGTHS = (32, 128, PROMPT_TOKENS)  # of the graphs
PADDING = -1


class Prompt:
    """A model's states of one row, and how it reads. ``pool``: memory of CUDA graphs, on a GPU."""

    def __init__(self, model: Any, pool: Any = None) -> None:
        self._model, self._device = model, model.lm_head.weight.device
        states = model.allocate_inference_cache(1, ENDLESS)
        self._params = InferenceParams(ENDLESS, 1, seqlen_offset=1, key_value_memory_dict=states)
        self._graphs = {}
        if self._device.type == "cuda":
            step = partial(read_padded, model, self._params)
            self._graphs = {length: capture(step, (1, length), self._device, pool) for length in LENGTHS}

    @property
    def states(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer, of one row, which the next part overwrites."""
        return self._params.key_value_memory_dict

    def read(self, part: list[int], before: int) -> Tensor:
        """Logits (1, V) after a part of at most PROMPT_TOKENS tokens, ``before`` of the prompt having been read."""
        if not self._graphs:
            self._params.seqlen_offset = before
            ids = torch.tensor([part], device=self._device)
            return self._model(ids, inference_params=self._params, num_last_tokens=1).logits[:, -1]
        if before == 0:
            torch._foreach_zero_([part for state in self.states.values() for part in state])
        length = next(length for length in LENGTHS if len(part) <= length)
        return self._graphs[length](torch.tensor([[PADDING] * (length - len(part)) + part]))


def read_padded(model: Any, params: InferenceParams, ids: Tensor) -> Tensor:
    """Logits (1, V) after ids (1, L), with PADDING before them, that continue what params hold, be it zeros."""
    text = ids != PADDING
    ids = ids.masked_fill(~text, 0)
    return model(ids, inference_params=params, num_last_tokens=1, attention_mask=text).logits[:, -1]
