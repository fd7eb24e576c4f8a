"""Comparing a kernel with the reference in float64, values and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Relative error of the norm: fp32 sums, and outputs rounded once to half precision.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}


def rand(
    *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    """Normal numbers that dtype holds exactly, so that the reference sees the same ones."""
    return (torch.randn(shape) * scale + shift).to(dtype).to(device)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same (B, D, L) values: channel-first, channel-last, or as a slice of a wider channel-last tensor."""
    if layout == "channel-first":
        return x.contiguous()
    last = x.transpose(1, 2).contiguous()
    if layout == "slice":
        last = torch.cat([last, last], dim=-1)[..., : x.shape[1]]
    return last.transpose(1, 2)


def check(
    fast: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    tolerance: float,
    **options: Any,
) -> None:
    """Outputs and all gradients of fast(*inputs, **options) against reference in float64."""

    def run(function: Callable[..., Any], convert: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [None if m is None else convert(m.detach()).requires_grad_() for m in inputs]
        outputs = function(*leaves, **options)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        torch.manual_seed(1)
        seeds = [torch.randn(o.shape).to(torch.bfloat16).to(o.device) for o in outputs]
        given = [m for m in leaves if m is not None]
        grads = torch.autograd.grad(outputs, given, [s.to(o.dtype) for s, o in zip(seeds, outputs, strict=True)])
        return outputs, list(grads)

    def twin(m: Tensor) -> Tensor:
        return torch.empty_strided(m.shape, m.stride(), dtype=m.dtype, device=m.device).copy_(m)

    outputs, grads = run(fast, twin)
    wanted, wanted_grads = run(reference, lambda m: m.double())
    assert [o.shape for o in outputs] == [o.shape for o in wanted]
    assert [g.dtype for g in grads] == [m.dtype for m in inputs if m is not None]
    for name, got, want in [
        *((f"output {i}", g, w) for i, (g, w) in enumerate(zip(outputs, wanted, strict=True))),
        *((f"gradient {i}", g, w) for i, (g, w) in enumerate(zip(grads, wanted_grads, strict=True))),
    ]:
        assert torch.isfinite(got).all(), f"{name} is not finite"
        error = (got.double() - want).norm() / want.norm().clamp_min(1e-6)
        assert error < tolerance, f"{name}: relative error {error:.1e}"
