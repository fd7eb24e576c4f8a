import pytest
import torch
from checks import TOLERANCE, check, laid_out, rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import causal_conv1d as cuda
from mamba_ssm.ops.reference import causal_conv1d as reference

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


def compare(inputs, seq=None, final=False, activation="silu", tolerance=None):
    """The gradient of out lies in memory as out does."""
    x = inputs[0]
    last = x.stride(1) < x.stride(2)

    def run(function):
        def call(x, w, b, s):
            out, *states = function(x, w, b, seq, s, True, activation=activation)
            return (out.transpose(1, 2) if last else out, *(states if final else []))

        return call

    check(run(cuda.causal_conv1d_fn), run(reference.causal_conv1d_fn), inputs, tolerance or TOLERANCE[x.dtype])


def make(batch, dim, length, width, layout="channel-last", dtype=FP32, device="cpu", parameters=FP32, states=None):
    torch.manual_seed(0)
    return [
        laid_out(rand(batch, dim, length, dtype=dtype, device=device), layout),
        rand(dim, width, dtype=parameters, device=device),
        rand(dim, dtype=parameters, device=device),
        rand(batch, dim, width - 1, dtype=states or dtype, device=device),
    ]


# Whole vectors, narrower ones and none; one span of time and several; their tails; shorter than the window.
SHAPES = [(2, 40, 33), (1, 264, 70), (1, 6, 300), (2, 5, 17), (1, 3, 1), (1, 4, 2), (2, 10, 520)]


@pytest.mark.parametrize("layout", ["channel-last", "slice", "channel-first"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(device, shape, layout):
    compare(make(*shape, 4, layout, device=device), final=True)


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("shape", [(2, 40, 36), (1, 264, 72), (2, 5, 17), (1, 2, 520)])
def test_half_precision(device, shape, dtype, layout):
    compare(make(*shape, 4, layout, dtype, device), final=True)


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
@pytest.mark.parametrize("width", [2, 3])
def test_other_widths(device, width, layout):
    compare(make(2, 12, 37, width, layout, device=device), final=True)


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
@pytest.mark.parametrize("activation", [None, "swish"])
def test_without_bias_and_states(device, activation, layout):
    x, weight, _, _ = make(2, 12, 37, 4, layout, device=device)
    compare([x, weight, None, None], activation=activation)


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_dtypes_mixed(device, layout):
    half = TOLERANCE[BF16]  # the gradients of bf16 inputs are bf16
    compare(make(1, 12, 20, 4, layout, FP32, device, parameters=BF16, states=FP16), final=True, tolerance=half)
    compare(make(1, 12, 20, 4, layout, BF16, device, parameters=FP16, states=FP32), final=True)


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_packed_sequences_do_not_see_each_other(device, activation, layout):
    first = [0] * 4 + [1] * 9 + [2] * 270
    second = [0] * 2 + [3] + [4] * 12 + [6, 7, 8, 8] * 60 + [9] * 23 + [-1] * 5
    seq = torch.tensor([first, second], device=device)
    compare(make(2, 5, 283, 4, layout, device=device), seq, True, activation)
    compare(make(2, 5, 2, 4, layout, device=device), seq[:, 1:3], True, activation)


def test_any_strides(device):
    x, weight, bias, states = make(6, 8, 40, 4, device=device)
    every_other = x.transpose(0, 1)[:, :6, ::2]  # (8, 6, 20), neither axis next to itself
    compare([every_other, weight[:6], bias[:6], None])
    compare(
        [
            x,
            weight.t().contiguous().t(),
            rand(16, device=device)[::2],
            states.flip(-1).transpose(0, 1).contiguous().transpose(0, 1),
        ]
    )
    expanded = torch.ones((), device=device).expand(6, 8, 40)
    grads = cuda.backward(expanded, x, weight, bias, None, None, True)
    dense = cuda.backward(expanded.contiguous(), x, weight, bias, None, None, True)
    torch.testing.assert_close(grads.dx, dense.dx)


def test_a_gradient_laid_out_another_way(device):
    x, weight, bias, states = make(2, 40, 36, 4, "channel-last", device=device)
    dout = rand(2, 40, 36, device=device)
    for a, b in zip(
        cuda.backward(dout, x, weight, bias, None, states, True),
        cuda.backward(laid_out(dout, "channel-last"), x, weight, bias, None, states, True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_writes_where_it_is_told_and_nowhere_else(device, layout):
    x, weight, bias, states = make(2, 12, 37, 4, layout, BF16, device)
    dout = rand(2, 12, 37, dtype=BF16, device=device)

    def half_of_wider():
        wide = torch.full((2, 37, 26), float("nan"), dtype=BF16, device=device)
        return wide, wide[..., 13:25].transpose(1, 2)

    wide_out, out = half_of_wider()
    wide_dx, dx = half_of_wider()
    assert cuda.forward(x, weight, bias, None, states, True, out) is out
    assert cuda.backward(dout, x, weight, bias, None, states, True, dx).dx is dx
    torch.testing.assert_close(out, cuda.forward(x, weight, bias, None, states, True))
    torch.testing.assert_close(dx, cuda.backward(dout, x, weight, bias, None, states, True).dx)
    for wide in (wide_out, wide_dx):
        assert wide[..., :13].isnan().all()
        assert wide[..., 25:].isnan().all()


def test_final_states_continue(device):
    x, weight, bias, states = make(2, 6, 9, 4, device=device)
    whole, last = cuda.causal_conv1d_fn(x, weight, bias, None, states, True, activation="silu")
    kept = torch.empty_like(states)
    a, given = cuda.causal_conv1d_fn(x[..., :2], weight, bias, None, states, True, kept, "silu")
    assert given is kept
    b, end = cuda.causal_conv1d_fn(x[..., 2:], weight, bias, None, kept, True, activation="silu")
    torch.testing.assert_close(torch.cat([a, b], dim=-1), whole)
    torch.testing.assert_close(end, last)


def test_gradient_of_the_final_states_alone(device):
    x, weight, bias, states = (m.requires_grad_() for m in make(2, 6, 2, 4, device=device))
    _, last = cuda.causal_conv1d_fn(x, weight, bias, None, states, True)
    dx, dstates = torch.autograd.grad(last, [x, states], torch.ones_like(last))
    torch.testing.assert_close(dx, torch.ones_like(x))
    torch.testing.assert_close(dstates, torch.tensor([0.0, 0.0, 1.0], device=device).expand_as(states))


def test_nothing_in_nothing_out(device):
    x, weight, bias, states = (m.requires_grad_() for m in make(2, 6, 0, 4, device=device))
    out, last = cuda.causal_conv1d_fn(x, weight, bias, None, states, True)
    assert out.shape == x.shape
    torch.testing.assert_close(last, states)
    dweight, dstates = torch.autograd.grad([out, last], [weight, states], [out, torch.ones_like(last)])
    assert not dweight.any()
    torch.testing.assert_close(dstates, torch.ones_like(states))


def test_says_what_it_does_not_take():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(BackendError, match="widths 2 to 4"):
        cuda.causal_conv1d_fn(x, torch.zeros(2, 5))
    with pytest.raises(BackendError, match="fp64"):
        cuda.causal_conv1d_fn(x.double(), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="relu"):
        cuda.causal_conv1d_fn(x, torch.zeros(2, 4), activation="relu")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first", "slice"])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("shape", [(3, 520, 1030), (2, 1536, 2048), (1, 33, 4097)])
def test_training_sizes(device, shape, dtype, layout):
    compare(make(*shape, 4, layout, dtype, device), final=True)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_training_sizes_packed(device, width, dtype, layout):
    seq = (torch.rand(2, 2050, device=device) < 0.01).cumsum(1)
    seq[:, -100:] = -1
    compare(make(2, 264, 2050, width, layout, dtype, device), seq, True)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_the_same_every_time(device, layout):
    x, weight, bias, states = make(2, 1536, 2048, 4, layout, BF16, device)
    first, second = (cuda.backward(x, x, weight, bias, None, states, True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_more_than_two_to_the_31_numbers(device, layout):
    shape = (2, 1030, (1 << 20) + 5) if layout == "channel-first" else (2, (1 << 20) + 5, 1030)
    x = torch.full(shape, 0.5, dtype=FP16, device=device)
    x = x if layout == "channel-first" else x.transpose(1, 2)
    weight, bias = rand(1030, 4, device=device), rand(1030, device=device)
    out = cuda.forward(x, weight, bias, None, None, True)
    grads = cuda.backward(x, x, weight, bias, None, None, True)
    wanted = reference.causal_conv1d_fn(x[1:, :, -8:].contiguous(), weight, bias, activation="silu")
    torch.testing.assert_close(out[1:, :, -5:], wanted[..., -5:], atol=2e-3, rtol=2e-3)
    assert grads.dx.isfinite().all()
