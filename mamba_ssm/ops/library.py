"""Ops of the doors as operators of PyTorch, for torch.compile and torch.export, which cannot look into a kernel.

A door takes its operator only while something traces it: an eager call goes straight to its back-end. The operator
calls the same back-end, chosen when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("mamba_ssm", "FRAGMENT")
# Layouts of outputs follow those of inputs, so a compiler must not change these after it has asked for those.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def define_operator(
    schema: str, run: Callable[..., tuple[Tensor, ...]], fake: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., Any]:
    """Define an operator, and `NAME_backward`, its gradient; return what calls it.

    Args:
        schema: "NAME(arguments) -> (results)", of tensors, numbers and strings.
        run: gives results that autograd can follow.
        fake: gives unwritten results; the first has the memory layout of torch.empty_like(the first argument), the
            others are contiguous.

    The backward operator runs the op again and differentiates that: right on any back-end, and no more than the inputs
    is kept. It has no gradient of its own.
    """
    name, _, rest = schema.partition("(")

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        first, *others = run(*inputs)
        return _as_promised(first, inputs[0], inputs), *(_own(m.contiguous(), inputs) for m in others)

    def backward(grads: list[Tensor | None], wanted: list[bool], *inputs: Any) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [m.detach().requires_grad_() if want else m for m, want in zip(inputs, wanted, strict=True)]
            results = zip(run(*leaves), grads, strict=True)
            followed = [(m, grad) for m, grad in results if grad is not None and m.requires_grad]
        given = [m for m, want in zip(leaves, wanted, strict=True) if want]
        outputs, seeds = [m for m, _ in followed], [grad for _, grad in followed]
        made = torch.autograd.grad(outputs, given, seeds, materialize_grads=True)
        return [_as_promised(grad, m, (*inputs, *grads)) for grad, m in zip(made, given, strict=True)]

    def fake_backward(grads: list[Tensor | None], wanted: list[bool], *inputs: Any) -> list[Tensor]:
        return [torch.empty_like(m) for m, want in zip(inputs, wanted, strict=True) if want]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(m if isinstance(m, Tensor) else None for m in inputs))
        ctx.others = [None if isinstance(m, Tensor) else m for m in inputs]

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = [other if m is None else m for m, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        wanted = list(ctx.needs_input_grad)
        made = iter(run_backward(grads, wanted, *inputs))
        return tuple(next(made) if want else None for want in wanted)

    arguments = rest.partition(") ->")[0]
    run_forward = _define(name, f"({rest}", forward, fake)
    torch.library.register_autograd(f"mamba_ssm::{name}", differentiate, setup_context=keep, lib=_library)
    signature = f"(Tensor?[] grads, bool[] wanted, {arguments}) -> Tensor[]"
    run_backward = _define(f"{name}_backward", signature, backward, fake_backward)
    # What PyTorch puts here otherwise turns autograd off inside.
    _library.impl(f"{name}_backward", torch.library.fallthrough_kernel, "Autograd")
    return run_forward


def _define(name: str, signature: str, real: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    _library.define(name + signature, tags=_TAGS)
    _library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mamba_ssm::{name}", fake, lib=_library)
    return getattr(torch.ops.mamba_ssm, name)


def _as_promised(made: Tensor, like: Tensor, inputs: Sequence[Any]) -> Tensor:
    """`made` in memory of its own, laid out as torch.empty_like(like), which is what the fake ones say."""
    if made.stride() != torch.empty_like(like, device="meta").stride():
        made = torch.empty_like(like, dtype=made.dtype).copy_(made)
    return _own(made, inputs)


def _own(made: Tensor, inputs: Sequence[Any]) -> Tensor:
    """A copy, where `made` is one of the inputs: a compiler reuses their memory."""
    shared = any(isinstance(m, Tensor) and m.data_ptr() == made.data_ptr() for m in inputs)
    return made.clone() if shared else made
