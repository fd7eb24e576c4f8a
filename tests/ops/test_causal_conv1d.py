import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update

BATCH, DIM, LENGTH = 2, 3, 10


def make(width: int = 4, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    shapes = (BATCH, DIM, length), (DIM, width), (DIM,), (BATCH, DIM, width - 1)
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def by_loops(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
    x, weight, bias, state = (m.double() for m in (x, weight, bias, state))
    width = weight.shape[1]
    out = torch.empty_like(x)
    for b, d, t in itertools.product(*map(range, x.shape)):
        y = bias[d].item()
        for k in range(width):
            past = x[b, d, t - k] if t >= k else state[b, d, width - 1 + t - k]
            y += (weight[d, width - 1 - k] * past).item()
        out[b, d, t] = y
    return out


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 10])
def test_equals_loops(backend_name: str, width: int, length: int) -> None:
    x, weight, bias, state = make(width, length)
    out, final = causal_conv1d_fn(x, weight, bias, initial_states=state, return_final_states=True)
    torch.testing.assert_close(out, by_loops(x, weight, bias, state).float())
    assert torch.equal(final, torch.cat([state, x], -1)[..., length:])
    for activation in ("silu", "swish"):
        gated = causal_conv1d_fn(x, weight, activation=activation)
        y = by_loops(x, weight, torch.zeros(DIM), torch.zeros_like(state))
        torch.testing.assert_close(gated, (y * y.sigmoid()).float())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_half_precision_in_and_out(backend_name: str, dtype: torch.dtype, bound: float) -> None:
    x, weight, bias, state = make(dtype=dtype)
    out, final = causal_conv1d_fn(x, weight, bias, initial_states=state, return_final_states=True)
    assert out.dtype == final.dtype == dtype
    torch.testing.assert_close(out, by_loops(x, weight, bias, state).to(dtype), rtol=bound, atol=bound)


@pytest.mark.parametrize("length", [1, 6])
def test_gradients_are_the_derivatives(length: int) -> None:
    inputs = [m.requires_grad_() for m in make(length=length, dtype=torch.float64)]

    def run(x, weight, bias, state):
        return causal_conv1d_fn(x, weight, bias, initial_states=state, return_final_states=True, activation="silu")

    assert torch.autograd.gradcheck(run, inputs)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, LENGTH), max_size=4))
def test_any_split_gives_the_same_result(backend_name: str, cuts: list[int]) -> None:
    x, weight, bias, state = make()
    keywords = {"return_final_states": True, "activation": "silu"}
    whole, final = causal_conv1d_fn(x, weight, bias, initial_states=state, **keywords)
    parts = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), LENGTH]):
        part, state = causal_conv1d_fn(x[..., start:stop], weight, bias, initial_states=state, **keywords)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole)
    assert torch.equal(state, final)


@pytest.mark.parametrize("kept", [3, 4, 7])
@pytest.mark.parametrize("step", [None, 1, 2, 5])
def test_update_continues_a_convolution(backend_name: str, kept: int, step: int | None) -> None:
    x, weight, bias, _ = make()
    whole = causal_conv1d_fn(x, weight, bias, activation="silu")
    state = torch.zeros(BATCH, DIM, kept)
    pieces = x.unbind(-1) if step is None else x.split(step, dim=-1)
    outs = [causal_conv1d_update(piece, state, weight, bias, "silu") for piece in pieces]
    assert all(out.shape == piece.shape for out, piece in zip(outs, pieces, strict=True))
    torch.testing.assert_close(torch.stack(outs, -1) if step is None else torch.cat(outs, -1), whole)
    assert torch.equal(state, x[..., LENGTH - kept :])


@pytest.mark.parametrize("length", [1, 5])
def test_gradients_of_an_update_are_the_derivatives(backend_name: str, length: int) -> None:
    inputs = [m.double().requires_grad_() for m in make(length=length)]

    def run(x, weight, bias, state):
        kept = state.clone()
        return causal_conv1d_update(x, kept, weight, bias, "silu"), kept

    assert torch.autograd.gradcheck(run, inputs)


def test_an_update_refuses_what_does_not_fit(backend_name: str) -> None:
    x, weight, bias, state = make()
    with pytest.raises(ValueError, match="conv_state is"):
        causal_conv1d_update(x, state[..., 1:], weight, bias)
    with pytest.raises(ValueError, match="bias is"):
        causal_conv1d_update(x, state, weight, bias[:-1])
    with pytest.raises(ValueError, match="silu"):
        causal_conv1d_update(x, state, weight, bias, "relu")


@pytest.mark.parametrize("lengths", [[4, 6], [1, 1, 8], [9, 1], [3, 2, 5]])
def test_packed_sequences_do_not_see_one_another(backend_name: str, lengths: list[int]) -> None:
    x, weight, bias, _ = make()
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(BATCH, -1)
    alone = [
        causal_conv1d_fn(m, weight, bias, return_final_states=True, activation="silu") for m in x.split(lengths, -1)
    ]
    packed, final = causal_conv1d_fn(x, weight, bias, ids, return_final_states=True, activation="silu")
    torch.testing.assert_close(packed, torch.cat([out for out, _ in alone], -1))
    assert torch.equal(final, alone[-1][1])


def test_packed_sequences_continue_the_first_and_skip_padding(backend_name: str) -> None:
    x, weight, bias, state = make()
    ids = torch.tensor([[0] * 2 + [1] * 6 + [-1] * 2]).expand(BATCH, -1)
    packed = causal_conv1d_fn(x, weight, bias, ids, initial_states=state)
    first = causal_conv1d_fn(x[..., :2], weight, bias, initial_states=state)
    torch.testing.assert_close(packed[..., :2], first)
    torch.testing.assert_close(packed[..., 2:8], causal_conv1d_fn(x[..., 2:8], weight, bias))
    assert not packed[..., 8:].any()


def test_any_strides_and_the_input_s_layout(backend_name: str) -> None:
    x, weight, bias, state = make()
    expected = causal_conv1d_fn(x, weight, bias, initial_states=state)
    channels_last = x.transpose(1, 2).contiguous().transpose(1, 2)
    out = causal_conv1d_fn(channels_last, weight, bias, initial_states=state)
    torch.testing.assert_close(out, expected)
    assert out.stride() == channels_last.stride()
    every_other = torch.randn(BATCH, DIM, 2 * LENGTH)[..., ::2].copy_(x)
    torch.testing.assert_close(causal_conv1d_fn(every_other, weight, bias, initial_states=state), expected)


def test_final_states_go_where_they_are_asked(backend_name: str) -> None:
    x, weight, _, state = make()
    room = torch.empty_like(state)
    _, final = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=room)
    assert final.data_ptr() == room.data_ptr()
    assert torch.equal(room, x[..., LENGTH - 3 :])


def test_empty_inputs(backend_name: str) -> None:
    x, weight, bias, state = make()
    out, final = causal_conv1d_fn(x[..., :0], weight, bias, initial_states=state, return_final_states=True)
    assert out.shape == (BATCH, DIM, 0)
    assert torch.equal(final, state)
    assert causal_conv1d_fn(x[:0], weight, bias).shape == (0, DIM, LENGTH)


def test_unknown_activation_is_refused() -> None:
    x, weight, _, _ = make()
    with pytest.raises(ValueError, match="silu"):
        causal_conv1d_fn(x, weight, activation="relu")
