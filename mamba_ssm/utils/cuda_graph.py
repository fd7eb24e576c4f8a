"""One decoding step captured as a CUDA graph: a small model's step is bound by launches, and a graph is one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mamba_ssm.utils.generation import InferenceParams


@dataclass
class DecodingCGCache:
    """Captured steps of one model, by (batch size, tokens), and the states whose addresses they hold."""

    inference_params: InferenceParams
    key: tuple[Any, ...]
    callables: dict[tuple[int, int], Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def run(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, L) of a captured shape -> logits (B, L, V). The states move on; the result is a copy."""
        return self.callables[input_ids.shape[0], input_ids.shape[1]](input_ids)


@torch.no_grad()
def update_graph_cache(
    model: Any,
    cache: DecodingCGCache | None,
    batch_size: int,
    seqlen_og: int,
    max_seqlen: int,
    decoding_seqlens: tuple[int, ...] = (1,),
    dtype: torch.dtype | None = None,
    n_warmups: int = 2,
) -> DecodingCGCache:
    """Capture what the cache lacks; start again if the weights moved or the batch outgrew it. Needs a CUDA device.

    ``seqlen_og`` is the original's argument; a recurrent state does not grow with it, nor with ``max_seqlen``.
    """
    from mamba_ssm.utils.generation import InferenceParams

    weight = next(iter(model.parameters()))
    key = (weight.device, weight.dtype, weight.data_ptr(), dtype)
    if cache is None or cache.key != key or batch_size > cache.inference_params.max_batch_size:
        states = model.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype)
        cache = DecodingCGCache(InferenceParams(max_seqlen, batch_size, key_value_memory_dict=states), key)
    for tokens in decoding_seqlens:
        if (batch_size, tokens) not in cache.callables:
            cache.callables[batch_size, tokens] = _capture(model, cache.inference_params, batch_size, tokens, n_warmups)
    return cache


def _capture(
    model: Any, params: InferenceParams, batch_size: int, tokens: int, n_warmups: int
) -> Callable[[Tensor], Tensor]:
    device = next(iter(model.parameters())).device
    static_ids = torch.zeros(batch_size, tokens, dtype=torch.long, device=device)
    params.seqlen_offset = 1  # any offset but 0: a step continues

    def step() -> Tensor:
        return model(static_ids, inference_params=params, num_last_tokens=tokens).logits

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # Triton compiles, cuBLAS allocates: not while capturing
        for _ in range(n_warmups):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        static_logits = step()

    def run(input_ids: Tensor) -> Tensor:
        static_ids.copy_(input_ids)
        graph.replay()
        return static_logits.clone()

    return run
