"""One optimiser loop: AdamW, warm-up and cosine, bf16 autocast on a GPU with parameters in fp32, clipping."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mamba_ssm.training.capture import Captured
from mamba_ssm.training.schedule import cosine

Parts = dict[str, Tensor]
"""Losses, by name."""

NO_DECAY = (
    "A_log",
    "D",
    "bias",
    "norm",
    "embedding",
    "prior",
    "gate",
    "log_scale",
    "score_weight",
    "no_answer",
    "role",
)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, decay: float, slow: dict[str, float]
) -> list[dict]:
    """A group per learning rate and decay. SSM parameters, norms, biases and embeddings do not decay.

    ``slow`` maps a prefix of names to a factor on their learning rate, 0 to freeze.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        factor = next((f for prefix, f in slow.items() if name.startswith(prefix)), 1.0)
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            kept = any(part in name for part in NO_DECAY)
            groups.setdefault((lr * factor, 0.0 if kept else decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": wd} for (rate, wd), p in groups.items()]


def train(
    model: nn.Module,
    loss: Callable[[Any], Parts],
    steps: int,
    lr: float,
    batches: Iterable[Any] | None = None,
    capture: bool = False,
    decay: float = 0.01,
    warmup: int = 100,
    slow: dict[str, float] | None = None,
    log: Callable[[str], None] = print,
    report: Callable[[Tensor], None] | None = None,
) -> None:
    """Minimise the sum of loss(batch)'s parts, or of loss(step)'s where there are no ``batches``.

    ``capture``: on a GPU, replay the two passes as CUDA graphs; loss and batches must be fit for that, see Captured.
    ``report`` is given the loss after each step, on the model's device. Raises FloatingPointError when a loss that is
    logged is not finite.
    """
    device = next(model.parameters()).device
    groups = parameter_groups(model.named_parameters(), lr, decay, slow or {})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps, warmup))
    started, trained = time.perf_counter(), [p for g in groups for p in g["params"]]

    def backward(batch: Any) -> Parts:
        for parameter in trained:
            parameter.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts = loss(batch)
        torch.stack(list(parts.values())).sum().backward()
        return {name: part.detach() for name, part in parts.items()}

    run = Captured(backward, trained) if capture and device.type == "cuda" else backward
    model.train()
    for step, batch in zip(range(steps), itertools.count() if batches is None else batches, strict=False):
        parts = run(batch)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        total = torch.stack(list(parts.values())).sum()
        if report is not None:
            report(total)
        if step % 100 < 3 or step == steps - 1:
            if not torch.isfinite(total):
                raise FloatingPointError(f"the loss is {total.item()} at step {step}: lower the learning rate")
            shown = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            log(f"step {step} {shown} {time.perf_counter() - started:.1f} s")
    model.eval()
