"""One token of a causal convolution on a CPU against the reference in float64."""

import pytest
import torch
from checks import rand
from update_checks import BF16, FP16, FP32, LAYOUTS, check_convolution, make_convolution

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.causal_conv1d import causal_conv1d_update


def compare(x, state, weight, bias, activation="silu"):
    check_convolution(causal_conv1d_update, x, state, weight, bias, activation)


# Also across blocks of channels.
@pytest.mark.parametrize("dim", [5, 600])
@pytest.mark.parametrize("length", [None, 1, 2, 9])
@pytest.mark.parametrize(
    ("width", "kept"), [(1, 0), (1, 2), (2, 1), (2, 2), (3, 2), (3, 7), (4, 3), (4, 4), (4, 5), (6, 5)]
)
def test_widths_and_lengths(width, kept, length, dim):
    compare(*make_convolution(2, dim, width, kept, length))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("weight", [FP32, FP16, BF16])
@pytest.mark.parametrize("state", [FP32, FP16, BF16])
def test_dtypes(dtype, weight, state):
    # Only numbers that the state can hold: else its rounding shows in the next step.
    x, *others = make_convolution(3, 5, length=3, dtype=dtype, state=state, weight=weight)
    compare(x.to(BF16).to(FP16).to(dtype), *others)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations_and_bias(activation, with_bias):
    x, state, weight, bias = make_convolution(2, 9)
    compare(x, state, weight, bias if with_bias else None, activation)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(dtype, length, layout):
    compare(*map(LAYOUTS[layout], make_convolution(3, 11, length=length, dtype=dtype)))


def test_tied_arguments():
    x, state, weight, bias = make_convolution(2, 6)
    compare(x[:, :1].expand(-1, 6), state, weight[:1].expand(6, -1), bias[:1].expand(6))


def test_other_rows_of_a_larger_cache_stay():
    x, _, weight, bias = make_convolution(2, 6)
    cache = rand(4, 6, 4)
    before = cache.clone()
    compare(x, cache[1:-1], weight, bias)
    assert torch.equal(cache[[0, -1]], before[[0, -1]])


@pytest.mark.parametrize(("batch", "dim", "length"), [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 5, None)])
def test_nothing_to_do(batch, dim, length):
    x, state, weight, bias = make_convolution(batch, dim, length=length)
    before = state.clone()
    assert causal_conv1d_update(x, state, weight, bias).shape == x.shape
    assert torch.equal(state, before)


def test_what_it_cannot_take_is_refused():
    x, state, weight, bias = make_convolution(2, 6)
    with pytest.raises(ValueError, match="conv_state is"):
        causal_conv1d_update(x, state[..., :2], weight, bias)
    with pytest.raises(ValueError, match="weight is"):
        causal_conv1d_update(x, state, weight[:-1], bias)
    with pytest.raises(BackendError, match="float64"):
        causal_conv1d_update(x.double(), state, weight, bias)
