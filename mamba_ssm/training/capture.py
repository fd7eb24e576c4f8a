"""A training step's two passes as CUDA graphs: of a small model, launching the kernels takes longer than they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WARM_UPS = 2  # eager runs before a capture, which compile kernels and allocate what is kept


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Any
    parts: dict[str, Tensor]
    gradients: list[Tensor | None]


class Captured:
    """``backward(batch)``, which computes losses and gradients, captured once for each shape of batch and replayed.

    A batch is a tuple of tensors, None, and more such tuples. ``backward`` must not wait for the GPU, and must do
    the same for every batch of a shape. The losses that come back are overwritten by the next call.
    """

    def __init__(self, backward: Callable[[Any], dict[str, Tensor]], trained: Sequence[nn.Parameter]) -> None:
        self.backward, self.trained = backward, trained
        self._graphs: dict[tuple, _Graph] = {}

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        shape = tuple(None if leaf is None else leaf.shape for leaf in _leaves(batch))
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(_clone(batch))
        captured = self._graphs[shape]
        for to, given in zip(_leaves(captured.batch), _leaves(batch), strict=True):
            if to is not None:
                to.copy_(given)
        captured.graph.replay()
        for parameter, gradient in zip(self.trained, captured.gradients, strict=True):
            parameter.grad = gradient
        return captured.parts

    def _capture(self, batch: Any) -> _Graph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.backward(batch)
        torch.cuda.current_stream().wait_stream(stream)
        pool = next((made.graph.pool() for made in self._graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            parts = self.backward(batch)
        return _Graph(graph, batch, parts, [parameter.grad for parameter in self.trained])


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, tuple):
        for part in batch:
            yield from _leaves(part)
    else:
        yield batch


def _clone(batch: Any) -> Any:
    if isinstance(batch, tuple):
        parts = map(_clone, batch)
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return None if batch is None else batch.clone()
