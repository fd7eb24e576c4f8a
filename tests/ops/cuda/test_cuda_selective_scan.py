import pytest
import torch
from checks import TOLERANCE, check, laid_out, rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import selective_scan as cuda
from mamba_ssm.ops.reference import selective_scan as reference


def make(shape, states, device, dtype=torch.float32, layout="channel-last", groups=1, state=True, time_last=False):
    """Inputs in the order of selective_scan_fn, last the initial state; step sizes as in trained models."""
    torch.manual_seed(0)
    batch, dim, length = shape

    def by_token():
        if time_last:
            return rand(batch, groups, states, length, dtype=dtype, device=device)
        m = rand(batch, groups, length, states, dtype=dtype, device=device).transpose(2, 3)
        return m.squeeze(1) if groups == 1 else m

    u, delta, z = (laid_out(rand(*shape, dtype=dtype, device=device), layout) for _ in range(3))
    A = -rand(dim, states, device=device).exp()
    D, bias = rand(dim, device=device), rand(dim, device=device, shift=-3.0)
    return [u, delta, A, by_token(), by_token(), D, z, bias, rand(batch, dim, states, device=device) if state else None]


def compare(inputs, tolerance, last_state=True, softplus=True, seq_idx=None):
    def scan(function):
        def run(u, delta, A, B, C, D, z, bias, initial):
            return function(u, delta, A, B, C, D, z, bias, softplus, last_state, initial, seq_idx)

        return run

    check(scan(cuda.selective_scan_fn), scan(reference.selective_scan_fn), inputs, tolerance)


@pytest.fixture(params=[False, True], ids=["atomic", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_chunks(monkeypatch):
    """Let a short length be cut into chunks."""
    monkeypatch.setattr(cuda, "MIN_CHUNK", 32)
    monkeypatch.setattr(cuda, "CHUNK", 32)
    cuda._plan.cache_clear()
    yield
    cuda._plan.cache_clear()


@pytest.mark.parametrize("layout", ["channel-last", "channel-first", "slice"])
@pytest.mark.parametrize(
    ("shape", "states"), [((2, 3, 1), 1), ((1, 40, 7), 5), ((2, 6, 33), 16), ((1, 33, 70), 16), ((1, 8, 64), 16)]
)
def test_values_and_gradients(shape, states, layout, device, deterministic):
    compare(make(shape, states, device, layout=layout), TOLERANCE[torch.float32])


@pytest.mark.parametrize("states", [20, 40, 70, 256])
def test_many_states(states, device):
    compare(make((1, 5, 40), states, device), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_half_precision(dtype, layout, device):
    compare(make((2, 10, 40), 16, device, dtype, layout), TOLERANCE[dtype])


@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
@pytest.mark.parametrize("length", [100, 128])
def test_chunks_of_time(small_chunks, layout, length, device, deterministic):
    compare(make((1, 6, length), 16, device, layout=layout), TOLERANCE[torch.float32])
    assert plan(make((1, 6, length), 16, device, layout=layout)).chunks > 1


def plan(inputs):
    u, delta, A, B, C, *_ = inputs
    flags = {"SOFTPLUS": True, "PACKED": False, "SAVE_EVERY": 32}
    return cuda._plan_for(cuda.FORWARD, A, B.unsqueeze(1), C.unsqueeze(1), flags, u=u, delta=delta, z=None, out=u)


def test_groups_of_channels(device):
    compare(make((2, 12, 9), 4, device, groups=3, state=False), TOLERANCE[torch.float32])


def test_states_before_time_in_memory(device):
    compare(make((2, 10, 35), 16, device, layout="channel-first", time_last=True), TOLERANCE[torch.float32])


def test_every_tensor_in_a_layout_of_its_own(device):
    inputs = make((2, 6, 35), 16, device)
    inputs[1] = laid_out(inputs[1], "channel-first")
    inputs[6] = laid_out(inputs[6], "slice")
    inputs[3] = inputs[3].contiguous()
    compare(inputs, TOLERANCE[torch.float32])


def test_nothing_optional(device):
    u, delta, A, B, C, *_ = make((1, 5, 19), 4, device)
    compare([u, delta.abs(), A, B, C, None, None, None, None], TOLERANCE[torch.float32], False, softplus=False)


@pytest.mark.parametrize("length", [50, 100])
def test_packed_sequences_begin_from_nothing(small_chunks, length, device):
    seq = torch.arange(length, device=device).expand(2, -1) // torch.tensor([[7], [33]], device=device)
    compare(make((2, 6, length), 16, device), TOLERANCE[torch.float32], seq_idx=seq)


def test_large_step_sizes_are_their_own_softplus(device):
    inputs = make((1, 5, 9), 4, device)
    inputs[1] = inputs[1] + 40 * (inputs[1] > 0.5)
    compare(inputs, TOLERANCE[torch.float32])


def test_gradient_of_the_last_state_alone(device):
    leaves = [m.clone().requires_grad_() for m in make((1, 5, 19), 4, device)]

    def gradients(function, leaves):
        args, initial = leaves[:-1], leaves[-1]
        last = function(*args, delta_softplus=True, return_last_state=True, initial_state=initial)[1]
        return torch.autograd.grad(last.square().sum(), [leaves[0], initial])

    for got, want in zip(
        gradients(cuda.selective_scan_fn, leaves),
        gradients(reference.selective_scan_fn, [m.detach().double().requires_grad_() for m in leaves]),
        strict=True,
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_no_tokens_leave_the_state_as_it_was(device):
    inputs = [m.requires_grad_() for m in make((2, 3, 0), 4, device)]
    out, last = cuda.selective_scan_fn(*inputs[:-1], return_last_state=True, initial_state=inputs[-1])
    assert out.shape == (2, 3, 0)
    torch.testing.assert_close(last, inputs[-1])
    last.sum().backward()
    torch.testing.assert_close(inputs[-1].grad, torch.ones_like(inputs[-1]))
    torch.testing.assert_close(inputs[2].grad, torch.zeros_like(inputs[2]))


def test_nothing_is_written_outside_and_nothing_is_left_out(device):
    """Outputs that lie inside a larger tensor, among numbers that must stay."""
    u, delta, A, B, C, D, z, bias, initial = make((2, 10, 40), 16, device)
    around = torch.full((2, 44, 24), float("nan"), device=device)
    dz = around[:, 2:42, 6:16].transpose(1, 2)
    B, C = B.unsqueeze(1), C.unsqueeze(1)
    inputs = (u, delta, A, B, C, D, z, bias, initial, None, True)
    out, _, saved = cuda.forward(*inputs, save=True)
    g = cuda.backward(torch.ones_like(out), None, saved, *inputs, dz=dz, again=True)
    assert g.dz is dz
    assert torch.isfinite(dz).all()
    assert int(around.isfinite().sum()) == dz.numel()
    torch.testing.assert_close(g.out, out)
    want = cuda.backward(torch.ones_like(out), None, saved, *inputs)
    torch.testing.assert_close(dz, want.dz)
    dout, delta = torch.ones_like(out), delta.clone()
    g = cuda.backward(dout, None, saved, u, delta, *inputs[2:], in_place=True)
    torch.testing.assert_close((dout, delta, g.dA), (want.du, want.ddelta, want.dA))


def test_output_has_the_layout_of_the_input(device):
    u, delta, A, B, C, *_ = make((1, 40, 3), 4, device)
    assert cuda.selective_scan_fn(u, delta, A, B, C).transpose(1, 2).is_contiguous()


def test_what_it_cannot_do_is_said_in_a_line(device):
    u, delta, A, B, C, *_ = make((1, 3, 3), 4, device)
    with pytest.raises(BackendError, match="real A"):
        cuda.selective_scan_fn(u, delta, A.cfloat(), B, C)
    with pytest.raises(BackendError, match="by token"):
        cuda.selective_scan_fn(u, delta, A, A, C)
    with pytest.raises(BackendError, match="fp64"):
        cuda.selective_scan_fn(u.double(), delta, A, B, C)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_training_sizes(dtype, layout, device):
    compare(make((2, 96, 1030), 16, device, dtype, layout), 2 * TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "states"),
    [
        ((3, 200, 130), 8),
        ((700, 128, 66), 16),
        ((2, 40, 33), 5),
        ((1, 3, 100), 1),
        ((2, 70, 130), 100),
        ((1, 9, 99), 256),
    ],
)
def test_shapes_on_the_device(shape, states, device):
    compare(make(shape, states, device), TOLERANCE[torch.float32])


@pytest.mark.gpu
def test_gradients_do_not_vary_from_run_to_run_on_request(device):
    inputs = [m.requires_grad_() for m in make((4, 192, 515), 16, device, torch.bfloat16)]
    torch.use_deterministic_algorithms(True)

    def gradients():
        out = cuda.selective_scan_fn(*inputs[:-1], delta_softplus=True, initial_state=inputs[-1])
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    try:
        for first, second in zip(gradients(), gradients(), strict=True):
            assert torch.equal(first, second)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_a_million_steps_do_not_drift(device):
    """The last steps of a long scan equal a float64 scan that begins where the earlier state is forgotten.

    The tolerance is that of fp32 decays, rounded once a step over the hundred steps that a state remembers here.
    """
    u, delta, A, B, C, D, z, bias, _ = make((1, 32, 1 << 20), 16, device)
    A = A.clamp(max=-0.5)
    out = cuda.selective_scan_fn(u, delta, A, B, C, D, z, bias, True)
    end = [m[..., -1500:] for m in (u, delta, B, C, z)]
    u, delta, B, C, z = (m.double() for m in end)
    want = reference.selective_scan_fn(u, delta, A.double(), B, C, D.double(), z, bias.double(), True)
    got = out[..., -500:].double()
    assert (got - want[..., -500:]).norm() / want[..., -500:].norm() < 2e-5


@pytest.mark.gpu
@pytest.mark.slow
def test_more_elements_than_32_bits_count(device):
    """The last rows of a tensor of 2^31 + elements equal the same rows alone."""
    dim, states, length = 2048, 4, 1 << 20
    torch.manual_seed(0)
    u = torch.randn(1, length + 64, dim, device=device, dtype=torch.bfloat16).transpose(1, 2)
    A, B = -torch.ones(dim, states, device=device), torch.randn(1, states, length + 64, device=device)
    delta = torch.ones_like(u)
    whole = cuda.selective_scan_fn(u, delta, A, B, B)
    end = cuda.selective_scan_fn(u[..., length:], delta[..., length:], A, B[..., length:], B[..., length:])
    # exp(-1) a step: 32 steps forget everything that came before.
    torch.testing.assert_close(whole[..., -32:], end[..., -32:], rtol=1e-2, atol=1e-2)
