"""The CPU's scan against the reference in float64, values and all gradients."""

import pytest
import torch
from checks import TOLERANCE, check, laid_out, rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu import selective_scan as cpu
from mamba_ssm.ops.reference import selective_scan as reference


@pytest.fixture
def threads():
    """More of them than there are blocks, so that the length is cut into segments."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def make(shape, states, dtype=torch.float32, layout="channel-last", groups=1, state=True):
    batch, dim, length = shape
    u, delta, z = (laid_out(rand(*shape, dtype=dtype), layout) for _ in range(3))
    B, C = (rand(batch, groups, states, length, dtype=dtype) for _ in range(2))
    A = -rand(dim, states).exp()
    return [u, delta, A, B, C, rand(dim), z, rand(dim, shift=-3.0), rand(batch, dim, states) if state else None]


def compare(inputs, softplus=True, last_state=True, seq_idx=None):
    def scan(function):
        def run(u, delta, A, B, C, D, z, bias, initial):
            return function(u, delta, A, B, C, D, z, bias, softplus, last_state, initial, seq_idx)

        return run

    check(scan(cpu.selective_scan_fn), scan(reference.selective_scan_fn), inputs, TOLERANCE[inputs[0].dtype])


@pytest.mark.parametrize("layout", ["channel-last", "channel-first", "slice"])
@pytest.mark.parametrize(
    ("shape", "states"), [((2, 3, 1), 1), ((1, 40, 7), 5), ((2, 130, 33), 16), ((1, 33, 70), 16), ((1, 7, 16), 70)]
)
def test_values_and_gradients(shape, states, layout):
    compare(make(shape, states, layout=layout))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_half_precision(dtype, layout):
    compare(make((2, 40, 37), 16, dtype, layout))


@pytest.mark.parametrize("left_out", [5, 6, 7, 8])
@pytest.mark.parametrize("softplus", [True, False])
def test_each_option_may_be_left_out(left_out, softplus):
    inputs = make((1, 20, 19), 4)
    if not softplus:
        inputs[1], inputs[7] = inputs[1].abs() * 0.1, inputs[7].abs() * 0.1
    inputs[left_out] = None
    compare(inputs, softplus, last_state=False)


@pytest.mark.parametrize("groups", [2, 6])
def test_groups(groups):
    compare(make((2, 48, 21), 8, groups=groups))


def test_packed_sequences():
    sequence = torch.tensor([[0] * 16 + [1] * 4 + [2] * 17 + [7], [3] + [4] * 37])
    compare(make((2, 20, 38), 16), seq_idx=sequence)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [256, 261, 700])
def test_a_length_cut_into_segments(threads, length, packed):
    inputs = make((1, 5, length), 4)
    inputs[2][1] = 0  # a channel that forgets nothing
    assert cpu._segments(1, length, 8) > 1
    sequence = (torch.arange(length) // 90).expand(1, -1) if packed else None
    compare(inputs, seq_idx=sequence)


def test_a_million_steps_do_not_drift():
    length = 1 << 20
    torch.manual_seed(0)
    u, delta = (torch.randn(1, 1, length) for _ in range(2))
    A, B, C = -torch.ones(1, 1) * 1e-3, torch.ones(1, 1, length), torch.ones(1, 1, length)
    with torch.no_grad():
        _, last = cpu.selective_scan_fn(u, delta, A, B, C, delta_softplus=True, return_last_state=True)
    dt = torch.nn.functional.softplus(delta.double()).flatten()
    after = dt.flip(0).cumsum(0).flip(0) - dt  # of all later steps
    want = (torch.exp(A.double().item() * after) * dt * u.double().flatten()).sum()
    assert abs(last.item() - want) < 2e-5 * abs(want)


def test_nan_stays_nan_and_in_its_channel():
    inputs = make((1, 40, 9), 16)
    inputs[0][0, 3, 4] = torch.nan
    with torch.no_grad():
        out = cpu.selective_scan_fn(*inputs[:8], True)
    assert out[0, 3, 4:].isnan().all()
    assert out[0, 3, :4].isfinite().all()
    assert torch.cat([out[0, :3], out[0, 4:]]).isfinite().all()


def test_another_dtype_is_refused():
    with pytest.raises(BackendError, match="fp32, fp16 and bf16"):
        cpu.selective_scan_fn(*(m.double() for m in make((1, 2, 3), 4)[:5]))
