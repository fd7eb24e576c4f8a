import pytest
import torch
from checks import check, laid_out
from triton_checks import DEVICE, TOLERANCE, rand

from mamba_ssm.ops import backend
from mamba_ssm.ops.causal_conv1d import causal_conv1d_update
from mamba_ssm.ops.gpu import causal_conv1d as gpu
from mamba_ssm.ops.reference import causal_conv1d as reference

WALK = [
    (2, 40, 33, 4, "channel-last", torch.float32),
    (1, 3, 1, 4, "slice", torch.float32),
    (2, 3, 70, 2, "channel-first", torch.float32),
    (1, 5, 17, 3, "slice", torch.bfloat16),
]


@pytest.mark.parametrize(("batch", "dim", "length", "width", "layout", "dtype"), WALK)
@pytest.mark.parametrize("with_state", [False, True])
def test_values_and_gradients(batch, dim, length, width, layout, dtype, with_state):
    torch.manual_seed(0)
    x = laid_out(rand(batch, dim, length, dtype=dtype), layout)
    initial = rand(batch, dim, width - 1, dtype=dtype) if with_state else None
    check(
        lambda x, w, b, s: gpu.causal_conv1d_fn(x, w, b, None, s, with_state, activation="silu"),
        lambda x, w, b, s: reference.causal_conv1d_fn(x, w, b, None, s, with_state, activation="silu"),
        [x, rand(dim, width), rand(dim), initial],
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("activation", [None, "silu"])
def test_packed_sequences_do_not_see_each_other(activation):
    torch.manual_seed(0)
    x = laid_out(rand(2, 5, 21), "channel-last")
    seq = torch.tensor([[0] * 4 + [1] * 9 + [2] * 8, [0] * 2 + [3] * 1 + [4] * 13 + [-1] * 5], device=DEVICE)
    check(
        lambda x, w, b, s: gpu.causal_conv1d_fn(x, w, b, seq, s, True, activation=activation),
        lambda x, w, b, s: reference.causal_conv1d_fn(x, w, b, seq, s, True, activation=activation),
        [x, rand(5, 4), rand(5), rand(2, 5, 3)],
        TOLERANCE[torch.float32],
    )


def test_update_continues_a_prefill():
    torch.manual_seed(0)
    x, weight = laid_out(rand(2, 6, 9), "channel-last"), rand(6, 4)
    whole = reference.causal_conv1d_fn(x, weight, activation="silu")
    state = torch.zeros(2, 6, 4, device=DEVICE)
    with backend.use("triton"):
        parts = [causal_conv1d_update(x[..., :4], state, weight, activation="silu")]
        parts += [causal_conv1d_update(x[..., t], state, weight, activation="silu")[..., None] for t in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole)
    torch.testing.assert_close(state, x[..., -4:])


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["channel-last", "channel-first", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_training_sizes(layout, dtype):
    torch.manual_seed(0)
    x = laid_out(rand(3, 520, 1030, dtype=dtype), layout)
    check(
        lambda x, w, b: gpu.causal_conv1d_fn(x, w, b, activation="silu"),
        lambda x, w, b: reference.causal_conv1d_fn(x, w, b, activation="silu"),
        [x, rand(520, 4), rand(520)],
        TOLERANCE[dtype],
    )
