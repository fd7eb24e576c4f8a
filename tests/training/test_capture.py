"""Training with captured passes gives what training step by step gives."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mamba_ssm.training.loop import train


class Batch(NamedTuple):
    x: Tensor
    y: tuple[Tensor, Tensor | None]


def batches(device):
    """Of two shapes, in turn."""
    for step in range(12):
        draws = torch.Generator().manual_seed(step)
        x = torch.randn(8 + 8 * (step % 2), 4, generator=draws)
        y = x.sum(1)
        yield Batch(x.to(device), (y.to(device), y.to(device) if step % 3 else None))


def trained(device, capture):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)

    def loss(batch):
        out = model(batch.x).squeeze(1).float()
        parts = {"square": (out - batch.y[0]).square().mean()}
        if batch.y[1] is not None:
            parts["absolute"] = (out - batch.y[1]).abs().mean()
        return parts

    lines = []
    train(model, loss, 12, 1e-2, batches(device), capture=capture, warmup=2, log=lines.append)
    return [p.detach().cpu() for p in model.parameters()], [line.rsplit(" ", 2)[0] for line in lines]


def test_on_a_cpu_capture_changes_nothing():
    (plain, said), (captured, said_too) = trained("cpu", False), trained("cpu", True)
    assert all(map(torch.equal, plain, captured))
    assert said == said_too


@pytest.mark.gpu
def test_on_a_gpu_replayed_steps_are_the_same_steps():
    (plain, said), (captured, said_too) = trained("cuda", False), trained("cuda", True)
    for one, other in zip(plain, captured, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert [line.split()[:3] for line in said] == [line.split()[:3] for line in said_too]
