"""The CPU's convolution against the reference in float64, values and all gradients."""

import pytest
import torch
from checks import TOLERANCE, check, laid_out, rand

from mamba_ssm.ops.cpu import causal_conv1d as cpu
from mamba_ssm.ops.reference import causal_conv1d as reference

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


def compare(shape, width, layout="channel-last", dtype=FP32, seq=None, initial=True, activation="silu"):
    batch, dim, _ = shape

    def run(function):
        return lambda x, w, b, s: function(x, w, b, seq, s, True, activation=activation)

    states = rand(batch, dim, width - 1, dtype=dtype) if initial else None
    inputs = [laid_out(rand(*shape, dtype=dtype), layout), rand(dim, width), rand(dim), states]
    check(run(cpu.causal_conv1d_fn), run(reference.causal_conv1d_fn), inputs, TOLERANCE[dtype])


# Shorter than the window, across segments of time, across blocks of channels.
@pytest.mark.parametrize("shape", [(2, 5, 1), (1, 3, 2), (2, 40, 33), (1, 7, 300), (1, 520, 5)])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("initial", [True, False])
def test_values_and_gradients(shape, width, initial):
    compare(shape, width, initial=initial and width > 1)


@pytest.mark.parametrize("layout", ["channel-first", "slice"])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("activation", [None, "swish"])
def test_layouts_and_dtypes(layout, dtype, activation):
    compare((2, 40, 140), 4, layout, dtype, activation=activation)


@pytest.mark.parametrize("length", [1, 7, 131])
def test_packed_sequences_with_padding(length):
    steps = torch.arange(length)
    compare((2, 9, length), 4, seq=torch.stack([steps // 3, torch.where(steps % 50 < 2, -1, steps // 60)]))
