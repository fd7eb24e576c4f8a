"""Decoding steps and short prompts captured as CUDA graphs: they are bound by launches, and a graph is one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mamba_ssm.utils.generation import InferenceParams


GRAPHED_PROMPT = 2048  # tokens; beyond them, launches are hidden behind the work
KEPT_PROMPTS = 16


@dataclass
class DecodingCGCache:
    """Captured steps of one model, by (batch size, tokens), and the states whose addresses they hold.

    ``prompts``: captured starts of a text; None for a shape that was seen once. ``pool``: the memory all graphs share.
    """

    inference_params: InferenceParams
    key: tuple[Any, ...]
    callables: dict[tuple[int, int], Callable[[Tensor], Tensor]] = field(default_factory=dict)
    prompts: dict[tuple[int, int], Callable[[Tensor], Tensor] | None] = field(default_factory=dict)
    pool: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, or a pickle of it, has None here: graphs hold the addresses of these very weights."""
        return type(None), ()

    def run(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, L) of a captured shape -> logits (B, L, V), which the next run of that shape overwrites."""
        return self.callables[input_ids.shape[0], input_ids.shape[1]](input_ids)

    def run_prompt(self, model: Any, input_ids: Tensor) -> Tensor | None:
        """Start a text with input_ids (B, L): its last logits (B, 1, V), which the next run of that shape overwrites.

        None where the caller must run the model: a long prompt, or a shape that comes for the first time. The second
        time it is captured.
        """
        shape = (input_ids.shape[0], input_ids.shape[1])
        if shape[1] > GRAPHED_PROMPT:
            return None
        if shape not in self.prompts:
            while len(self.prompts) >= KEPT_PROMPTS:
                del self.prompts[next(iter(self.prompts))]
            self.prompts[shape] = None
            return None
        run = self.prompts[shape]
        if run is None:
            run = self.prompts[shape] = _capture(self, model, *shape, offset=0, last=1)
        return run(input_ids)


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
            # Any offset but 0: a step continues.
            cache.callables[batch_size, tokens] = _capture(
                cache, model, batch_size, tokens, offset=1, last=tokens, n_warmups=n_warmups
            )
    return cache


@torch.no_grad()
def _capture(
    cache: DecodingCGCache, model: Any, batch_size: int, tokens: int, *, offset: int, last: int, n_warmups: int = 2
) -> Callable[[Tensor], Tensor]:
    """The model on (batch_size, tokens) ids at seqlen_offset `offset`, to the logits of the last `last` tokens."""
    params = cache.inference_params
    params.seqlen_offset = offset
    if cache.pool is None:
        cache.pool = torch.cuda.graph_pool_handle()  # graphs of a cache run one after the other

    def step(ids: Tensor) -> Tensor:
        return model(ids, inference_params=params, num_last_tokens=last).logits

    device = next(iter(model.parameters())).device
    return capture(step, (batch_size, tokens), device, cache.pool, n_warmups)


@torch.no_grad()
def capture(
    step: Callable[[Tensor], Tensor], shape: tuple[int, int], device: torch.device, pool: Any, n_warmups: int = 2
) -> Callable[[Tensor], Tensor]:
    """A function of ids of that shape: step(ids) as a CUDA graph. Its next call overwrites what it returned.

    step runs on zeros before, and its effects on states stay. Graphs of one ``pool`` must run one after the other.
    """
    static_ids = torch.zeros(shape, dtype=torch.long, device=device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # Triton compiles, cuBLAS allocates: not while capturing
        for _ in range(n_warmups):
            step(static_ids)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        made = step(static_ids)

    def run(input_ids: Tensor) -> Tensor:
        static_ids.copy_(input_ids)
        graph.replay()
        return made

    return run
