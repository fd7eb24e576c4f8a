import pytest
import torch
from triton_checks import TOLERANCE, rand

from mamba_ssm.ops.gpu import selective_state_update as gpu
from mamba_ssm.ops.reference import selective_state_update as reference


def compare(batch, dim, states, dtype, heads=(), groups=(), softplus=True):
    torch.manual_seed(0)
    args = [
        rand(batch, *heads, dim, states),
        rand(batch, *heads, dim, dtype=dtype),
        rand(batch, *heads, dim, dtype=dtype, shift=-3.0 if softplus else 3.0),
        -rand(*heads, dim, states).exp(),
        rand(batch, *groups, states, dtype=dtype),
        rand(batch, *groups, states, dtype=dtype),
        rand(*heads, dim),
        rand(batch, *heads, dim, dtype=dtype),
        rand(*heads, dim),
    ]
    doubles = [m.double() for m in args]
    for _ in range(2):
        got = gpu.selective_state_update(*args, dt_softplus=softplus)
        want = reference.selective_state_update(*doubles, dt_softplus=softplus)
        assert got.dtype == dtype
        assert (got.double() - want).norm() / want.norm() < TOLERANCE[dtype]
        assert (args[0].double() - doubles[0]).norm() / doubles[0].norm() < 1e-5


@pytest.mark.parametrize(("dim", "states"), [(3, 1), (40, 16), (70, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_match_the_reference(dim, states, dtype):
    compare(2, dim, states, dtype)


def test_heads_read_their_group():
    compare(2, 5, 8, torch.float32, heads=(4,), groups=(2,))


def test_step_sizes_without_softplus():
    compare(1, 5, 8, torch.float32, softplus=False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_generation_sizes(dtype):
    compare(128, 1536, 16, dtype)
    compare(3, 64, 128, dtype, heads=(24,), groups=(1,))
