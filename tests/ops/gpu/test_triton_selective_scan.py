import pytest
import torch
from checks import check, laid_out
from triton_checks import DEVICE, TOLERANCE, rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.gpu import selective_scan as gpu
from mamba_ssm.ops.reference import selective_scan as reference


def make(batch, dim, length, states, dtype=torch.float32, layout="channel-last", groups=1, constant="", state=True):
    """Inputs in the order of selective_scan_fn, last the initial state; step sizes as in trained models."""
    torch.manual_seed(0)

    def by_token(name):
        if name in constant:
            return rand(dim, states)
        m = rand(batch, groups, length, states, dtype=dtype).transpose(2, 3)
        return m.squeeze(1) if groups == 1 else m

    u, delta, z = (laid_out(rand(batch, dim, length, dtype=dtype), layout) for _ in range(3))
    A = -rand(dim, states).exp()
    initial = rand(batch, dim, states) if state else None
    return [u, delta, A, by_token("B"), by_token("C"), rand(dim), z, rand(dim, shift=-3.0), initial]


def compare(inputs, tolerance, last_state=True, softplus=True):
    def scan(function):
        def run(u, delta, A, B, C, D, z, bias, initial):
            return function(u, delta, A, B, C, D, z, bias, softplus, last_state, initial)

        return run

    check(scan(gpu.selective_scan_fn), scan(reference.selective_scan_fn), inputs, tolerance)


@pytest.mark.parametrize(
    ("batch", "dim", "length", "states", "layout"),
    [
        (2, 3, 1, 1, "channel-last"),
        (1, 40, 7, 5, "channel-first"),
        (2, 3, 33, 16, "slice"),
        (1, 3, 130, 8, "channel-last"),  # three chunks of time
    ],
)
def test_values_and_gradients(batch, dim, length, states, layout):
    compare(make(batch, dim, length, states, layout=layout), TOLERANCE[torch.float32])


@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_constant_matrices(constant):
    compare(make(1, 5, 70, 4, constant=constant), TOLERANCE[torch.float32])


def test_groups_of_channels():
    compare(make(2, 6, 9, 4, groups=2), TOLERANCE[torch.float32])


def test_autocast_mixes_dtypes():
    compare(make(1, 5, 19, 16, dtype=torch.bfloat16), TOLERANCE[torch.bfloat16])


def test_nothing_optional():
    u, delta, A, B, C, *_ = make(1, 5, 19, 4)
    compare([u, delta.abs(), A, B, C, None, None, None, None], TOLERANCE[torch.float32], False, softplus=False)


def test_large_step_sizes_are_their_own_softplus():
    inputs = make(1, 5, 9, 4)
    inputs[1] = inputs[1] + 40 * (inputs[1] > 0.5)
    compare(inputs, TOLERANCE[torch.float32])


def test_gradient_of_the_last_state_alone():
    leaves = [m.clone().requires_grad_() for m in make(1, 5, 19, 4)]

    def gradients(function, leaves):
        args, initial = leaves[:-1], leaves[-1]
        last = function(*args, delta_softplus=True, return_last_state=True, initial_state=initial)[1]
        return torch.autograd.grad(last.square().sum(), [leaves[0], initial])

    for got, want in zip(
        gradients(gpu.selective_scan_fn, leaves),
        gradients(reference.selective_scan_fn, [m.detach().double().requires_grad_() for m in leaves]),
        strict=True,
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_no_tokens_leave_the_state_as_it_was():
    inputs = [m.requires_grad_() for m in make(2, 3, 0, 4)]
    out, last = gpu.selective_scan_fn(*inputs[:-1], return_last_state=True, initial_state=inputs[-1])
    assert out.shape == (2, 3, 0)
    torch.testing.assert_close(last, inputs[-1])
    last.sum().backward()
    torch.testing.assert_close(inputs[-1].grad, torch.ones_like(inputs[-1]))
    torch.testing.assert_close(inputs[2].grad, torch.zeros_like(inputs[2]))


def test_output_has_the_layout_of_the_input():
    u, delta, A, B, C, *_ = make(1, 40, 3, 4, layout="channel-last")
    assert gpu.selective_scan_fn(u, delta, A, B, C).transpose(1, 2).is_contiguous()


def test_what_it_cannot_do_is_said_in_a_line():
    u, delta, A, B, C, *_ = make(1, 3, 3, 4)
    with pytest.raises(BackendError, match="real A"):
        gpu.selective_scan_fn(u, delta, A.cfloat(), B, C)
    with pytest.raises(BackendError, match="fp64"):
        gpu.selective_scan_fn(u.double(), delta, A, B, C)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [3, 40])
@pytest.mark.parametrize("states", [1, 5, 16, 32])
@pytest.mark.parametrize("length", [1, 7, 33, 130])
def test_odd_sizes(dim, states, length):
    compare(make(1, dim, length, states), TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_training_sizes(dtype, layout):
    compare(make(1, 96, 1030, 16, dtype, layout), TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("batch", "dim", "length", "states"), [(3, 200, 130, 8), (700, 128, 66, 16), (2, 40, 33, 5), (1, 3, 100, 1)]
)
def test_shapes_on_the_device(batch, dim, length, states):
    compare(make(batch, dim, length, states), TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("states", [32, 100, 256])
def test_many_states(states):
    compare(make(2, 70, 130, states), TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_constant_matrices_and_groups_at_training_sizes(constant):
    compare(make(4, 192, 515, 16, groups=3, constant=constant), TOLERANCE[torch.float32])


@pytest.mark.gpu
def test_gradients_do_not_vary_from_run_to_run():
    inputs = [m.requires_grad_() for m in make(4, 192, 515, 16, torch.bfloat16)]

    def gradients():
        out = gpu.selective_scan_fn(*inputs[:-1], delta_softplus=True, initial_state=inputs[-1])
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    """The last rows of a tensor of 2^31 + elements equal the same rows alone."""
    dim, states, length = 2048, 4, 1 << 20
    torch.manual_seed(0)
    u = torch.randn(1, length + 64, dim, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    A, B = -torch.ones(dim, states, device=DEVICE), torch.randn(1, states, length + 64, device=DEVICE)
    delta = torch.ones_like(u)
    whole = gpu.selective_scan_fn(u, delta, A, B, B)
    end = gpu.selective_scan_fn(u[..., length:], delta[..., length:], A, B[..., length:], B[..., length:])
    # exp(-1) a step: 32 steps forget everything that came before.
    torch.testing.assert_close(whole[..., -32:], end[..., -32:], rtol=1e-2, atol=1e-2)
