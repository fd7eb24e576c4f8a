"""One token through a Mamba block on a CPU against the reference in float64."""

import pytest
import torch
from checks import rand

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.block_step import Steps, block_step
from mamba_ssm.ops.reference.block_step import block_step as reference

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# Of a block's tensors, as block_step calls them and as Steps does.
NAMES = {
    **{"norm_weight": "norm", "norm_bias": "norm_bias", "in_proj_weight": "in_proj", "in_proj_bias": "in_bias"},
    **{"conv_state": "conv_state", "conv_weight": "conv", "conv_bias": "conv_bias", "x_proj_weight": "x_proj"},
    **{"dt_proj_weight": "dt_proj", "dt_proj_bias": "dt_bias", "A_log": "A_log", "D": "skip"},
    **{"ssm_state": "ssm_state", "out_proj_weight": "out_proj", "out_proj_bias": "out_bias"},
}


def make(rows, width, channels, states, conv, rank, dtype, residual=torch.float32, bias=False):
    def weight(*shape):
        return (rand(*shape) * shape[-1] ** -0.5).to(dtype)

    return {
        "hidden": rand(rows, width, dtype=dtype),
        "residual": None if residual is None else rand(rows, width, dtype=residual),
        # Rows of a larger cache.
        "conv_state": rand(rows + 2, channels, conv, dtype=dtype)[1:-1],
        "ssm_state": rand(rows + 2, channels, states)[1:-1],
        "norm_weight": rand(width, dtype=dtype, shift=1.0),
        "norm_bias": weight(width) if bias else None,
        "in_proj_weight": weight(2 * channels, width),
        "in_proj_bias": weight(2 * channels) if bias else None,
        "conv_weight": weight(channels, conv),
        "conv_bias": rand(channels, dtype=dtype) if bias else None,
        "x_proj_weight": weight(rank + 2 * states, channels),
        "dt_proj_weight": weight(channels, rank),
        "dt_proj_bias": rand(channels, dtype=dtype, shift=-3.0),
        "A_log": rand(channels, states),
        "D": rand(channels),
        "out_proj_weight": weight(width, channels),
        "out_proj_bias": weight(width) if bias else None,
    }


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize(
    ("rows", "width", "channels", "states", "conv", "rank"),
    [(1, 32, 64, 16, 4, 2), (3, 33, 65, 16, 4, 3), (2, 20, 7, 5, 3, 7), (9, 16, 32, 20, 2, 1)],
)
def test_two_steps(rows, width, channels, states, conv, rank, rms, dtype):
    given = make(rows, width, channels, states, conv, rank, dtype, bias=not rms)
    exact = {name: None if m is None else m.double() for name, m in given.items()}
    for _ in range(2):
        hidden = rand(rows, width, dtype=dtype)
        out, stream = block_step(**{**given, "hidden": hidden}, is_rms_norm=rms)
        want, want_stream = reference(**{**exact, "hidden": hidden.double()}, is_rms_norm=rms)
        assert (out.dtype, stream.dtype) == (dtype, torch.float32)
        for got, right in [
            (out, want),
            (stream, want_stream),
            (given["conv_state"], exact["conv_state"]),
            (given["ssm_state"], exact["ssm_state"]),
        ]:
            assert (got.double() - right).norm() < TOLERANCE[dtype] * right.norm()


@pytest.mark.parametrize("in_fp32", [True, False])
def test_the_stream_begins_in_the_dtype_that_was_asked_for(in_fp32):
    given = make(1, 8, 16, 4, 4, 2, torch.bfloat16, residual=None)
    _, stream = block_step(**given, residual_in_fp32=in_fp32)
    assert stream.dtype == (torch.float32 if in_fp32 else torch.bfloat16)
    assert torch.equal(stream.to(torch.bfloat16), given["hidden"])


def test_weights_that_lie_otherwise_are_refused():
    given = make(1, 8, 16, 4, 4, 2, torch.float32)
    with pytest.raises(BackendError, match="in_proj contiguous"):
        block_step(**{**given, "in_proj_weight": given["in_proj_weight"].t().contiguous().t()})
    with pytest.raises(BackendError, match="state in fp32"):
        block_step(**{**given, "ssm_state": given["ssm_state"].half()})


@pytest.mark.parametrize("residual", [None, torch.float32])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_blocks_one_after_the_other_some_of_their_weights_in_int8(blocks, dtype, residual):
    rows, width, channels = 3, 33, 65
    given = [make(rows, width, channels, 16, 4, 3, dtype, residual, bias=i == 1) for i in range(blocks)]
    exact = [{name: None if m is None else m.double() for name, m in block.items()} for block in given]
    steps = []
    for i, (block, right) in enumerate(zip(given, exact, strict=True)):
        whole = {new: block[old] for old, new in NAMES.items()}
        for matrix in ("in", "out") if i != 1 else ("out",):
            scale = rand(len(whole[f"{matrix}_proj"]), shift=2.0) / 1000
            whole[f"{matrix}_proj"] = torch.randint(-127, 128, whole[f"{matrix}_proj"].shape, dtype=torch.int8)
            whole[f"{matrix}_scale"] = scale.to(dtype)
            right[f"{matrix}_proj_weight"] = whole[f"{matrix}_proj"] * whole[f"{matrix}_scale"].double().unsqueeze(1)
        steps.append(whole)
    run = Steps(steps, 1e-5, True, True)
    for _ in range(2):
        hidden, stream = rand(rows, width, dtype=dtype), given[0]["residual"]
        out, got_stream = run(hidden, stream)
        want, want_stream = hidden.double(), None if stream is None else stream.double()
        for right in exact:
            want, want_stream = reference(**{**right, "hidden": want, "residual": want_stream})
        assert (out.dtype, got_stream.dtype) == (dtype, torch.float32)
        assert (out.double() - want).norm() < blocks * TOLERANCE[dtype] * want.norm()
        assert (got_stream.double() - want_stream).norm() < blocks * TOLERANCE[dtype] * want_stream.norm()
        for block, right in zip(given, exact, strict=True):
            assert (block["ssm_state"].double() - right["ssm_state"]).norm() < blocks * TOLERANCE[dtype] * right[
                "ssm_state"
            ].norm()
