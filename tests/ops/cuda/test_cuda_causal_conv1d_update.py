"""One token of a causal convolution in CUDA C++ against the reference in float64."""

import pytest
import torch
from checks import rand
from update_checks import BF16, FP16, FP32, LAYOUTS, check_convolution, make_convolution

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda.causal_conv1d import causal_conv1d_update


def compare(x, state, weight, bias, activation="silu"):
    check_convolution(causal_conv1d_update, x, state, weight, bias, activation)


@pytest.mark.parametrize("length", [None, 1, 2, 5, 9])
@pytest.mark.parametrize(("width", "kept"), [(2, 1), (2, 2), (3, 2), (3, 7), (4, 3), (4, 4), (4, 5)])
def test_widths_and_lengths(device, width, kept, length):
    compare(*make_convolution(2, 67, width, kept, length, device=device))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("weight", [FP32, FP16, BF16])
@pytest.mark.parametrize("length", [None, 3])
def test_dtypes(device, dtype, weight, length):
    for state in (FP32, FP16, BF16):
        # Only numbers that the state can hold: else its rounding shows in the next step.
        x, *others = make_convolution(3, 5, length=length, dtype=dtype, state=state, weight=weight, device=device)
        compare(x.to(BF16).to(FP16).to(dtype), *others)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations_and_bias(device, activation, with_bias):
    x, state, weight, bias = make_convolution(2, 9, device=device)
    compare(x, state, weight, bias if with_bias else None, activation)


@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(device, length, layout):
    compare(*map(LAYOUTS[layout], make_convolution(3, 11, length=length, dtype=FP16, device=device)))


def test_tied_arguments(device):
    x, state, weight, bias = make_convolution(2, 6, device=device)
    compare(x[:, :1].expand(-1, 6), state, weight[:1].expand(6, -1), bias[:1].expand(6))


def test_other_rows_of_a_larger_cache_stay(device):
    x, _, weight, bias = make_convolution(2, 6, device=device)
    cache = rand(4, 6, 4, device=device)
    before = cache.clone()
    compare(x, cache[1:-1], weight, bias)
    assert torch.equal(cache[[0, -1]], before[[0, -1]])


@pytest.mark.parametrize(("batch", "dim", "length"), [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 5, None)])
def test_nothing_to_do(device, batch, dim, length):
    x, state, weight, bias = make_convolution(batch, dim, length=length, device=device)
    before = state.clone()
    assert causal_conv1d_update(x, state, weight, bias).shape == x.shape
    assert torch.equal(state, before)


def test_what_it_cannot_take_is_refused(device):
    x, state, weight, bias = make_convolution(2, 6, device=device)
    with pytest.raises(ValueError, match="conv_state is"):
        causal_conv1d_update(x, state[..., :2], weight, bias)
    with pytest.raises(ValueError, match="conv_state is"):
        causal_conv1d_update(x, state[:1], weight, bias)
    with pytest.raises(ValueError, match="weight is"):
        causal_conv1d_update(x, state, weight[:-1], bias)
    with pytest.raises(ValueError, match="bias is"):
        causal_conv1d_update(x, state, weight, bias[:-1])
    with pytest.raises(ValueError, match="relu"):
        causal_conv1d_update(x, state, weight, bias, "relu")
    with pytest.raises(BackendError, match="float64"):
        causal_conv1d_update(x.double(), state, weight, bias)
    with pytest.raises(BackendError, match="widths 2 to 4, got 5"):
        causal_conv1d_update(*make_convolution(2, 6, 5, 5, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_published_sizes(device, dtype, batch):
    compare(*make_convolution(batch, 1536, dtype=dtype, device=device))
    compare(*make_convolution(batch, 2560, dtype=dtype, weight=dtype, kept=3, length=2, device=device))


@pytest.mark.gpu
def test_a_captured_step_is_the_same_bit_for_bit(device):
    x, state, weight, bias = make_convolution(3, 1536, dtype=FP16, device=device)
    kept = state.clone()
    expected = causal_conv1d_update(x, kept, weight, bias, "silu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = causal_conv1d_update(x, state, weight, bias, "silu")
    graph.replay()
    assert torch.equal(out, expected)
    assert torch.equal(state, kept)
