"""The Mamba layer: shapes, states in and out, and the cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm import Mamba
from mamba_ssm.utils.generation import InferenceParams


@pytest.fixture(scope="module")
def layer() -> Mamba:
    torch.manual_seed(0)
    return Mamba(d_model=12, d_state=6, d_conv=4, expand=2, layer_idx=0)


def test_the_promised_call_keeps_its_shape():
    y = Mamba(d_model=16, d_state=16, d_conv=4, expand=2)(torch.randn(2, 64, 16))
    assert y.shape == (2, 64, 16)
    assert y.isfinite().all()


def test_parameters_have_the_names_and_flags_of_published_checkpoints():
    layer = Mamba(32, dt_rank=3)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (3 + 32, 64),
        "dt_proj.weight": (64, 3),
        "dt_proj.bias": (64,),
        "A_log": (64, 16),
        "D": (64,),
        "out_proj.weight": (32, 64),
    }
    assert layer.A_log._no_weight_decay
    assert layer.D._no_weight_decay
    assert layer.dt_proj.bias._no_reinit


def test_initial_values_follow_the_paper():
    layer = Mamba(64, d_state=5, dt_min=0.01, dt_max=0.2, dtype=torch.bfloat16)
    torch.testing.assert_close(-layer.A_log.exp(), -torch.arange(1.0, 6).expand(128, 5))
    dt = torch.nn.functional.softplus(layer.dt_proj.bias.float())
    assert 0.0095 < dt.min() < 0.02
    assert 0.1 < dt.max() < 0.21
    assert layer.A_log.dtype == layer.D.dtype == torch.float32
    assert layer.in_proj.weight.dtype == torch.bfloat16


@settings(max_examples=25)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_any_split_with_explicit_states_is_the_same_layer(layer, lengths):
    x = torch.randn(2, sum(lengths), 12, generator=torch.Generator().manual_seed(sum(lengths)))
    whole, last = layer(x, return_state=True)
    state, parts = None, []
    for chunk in x.split(lengths, dim=1):
        part, state = layer(chunk, initial_state=state, return_state=True)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(state, last, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_the_state_between_chunks(layer):
    x = torch.randn(1, 9, 12)

    def input_gradient(*lengths: int) -> torch.Tensor:
        leaf, state, out = x.clone().requires_grad_(), None, None
        for chunk in leaf.split(lengths, dim=1):
            out, state = layer(chunk, initial_state=state, return_state=True)
        out[:, -1].square().sum().backward()
        return leaf.grad

    torch.testing.assert_close(input_gradient(4, 2, 3), input_gradient(9), atol=1e-6, rtol=1e-4)


def test_step_equals_forward_and_updates_its_states_in_place(layer):
    x = torch.randn(3, 7, 12)
    whole, last = layer(x, return_state=True)
    conv_state, ssm_state = layer.allocate_inference_cache(3, 7)
    assert conv_state.shape == (3, 24, 4)
    assert ssm_state.shape == (3, 24, 6)
    steps = [layer.step(x[:, t : t + 1], conv_state, ssm_state)[0] for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv_state, last[0])
    torch.testing.assert_close(ssm_state, last[1], atol=1e-5, rtol=1e-5)


def test_a_batch_takes_its_rows_of_a_larger_cache(layer):
    x = torch.randn(2, 5, 12)
    whole = layer(x)
    params = InferenceParams(max_seqlen=5, max_batch_size=4)
    params.batch_size_offset = 1
    first = layer(x[:, :3], inference_params=params)
    params.seqlen_offset = 3
    second = layer(x[:, 3:], inference_params=params)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=1e-5)
    conv_state, ssm_state = params.key_value_memory_dict[0]
    assert ssm_state.shape[0] == 4
    assert not conv_state[0].any()
    assert not ssm_state[3].any()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=3), st.integers(0, 6), st.data())
def test_padding_on_either_side_changes_no_row_and_no_state(layer, rows, more, data):
    """Rows of (left padding, text), padded on the right too, in two chunks cut anywhere; then `more` tokens."""
    generator = torch.Generator().manual_seed(0)
    length = max(left + text for left, text in rows) + data.draw(st.integers(0, 3))
    x = 9 * torch.randn(len(rows), length, 12, generator=generator)
    after = torch.randn(len(rows), more, 12, generator=generator)
    mask = torch.tensor([[left <= t < left + text for t in range(length)] for left, text in rows]).view(
        len(rows), length
    )
    cut = data.draw(st.integers(0, length))
    first, state = layer(x[:, :cut], return_state=True, attention_mask=mask[:, :cut])
    second, state = layer(x[:, cut:], initial_state=state, return_state=True, attention_mask=mask[:, cut:])
    third, state = layer(after, initial_state=state, return_state=True)
    for row, (left, text) in enumerate(rows):
        alone = torch.cat([x[row, left : left + text], after[row]]).unsqueeze(0)
        expected, (conv_state, ssm_state) = layer(alone, return_state=True)
        got = torch.cat([torch.cat([first, second], 1)[row, left : left + text], third[row]]).unsqueeze(0)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(state[0][row : row + 1], conv_state, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state[1][row : row + 1], ssm_state, atol=1e-4, rtol=1e-4)


def test_a_cache_used_with_gradients_keeps_no_graph(layer):
    x, params = torch.randn(1, 4, 12), InferenceParams(max_seqlen=4, max_batch_size=1)
    outs = []
    for t in range(4):
        outs.append(layer(x[:, t : t + 1], inference_params=params))
        params.seqlen_offset += 1
        assert not any(state.requires_grad for state in params.key_value_memory_dict[0])
    torch.testing.assert_close(torch.cat(outs, 1), layer(x), atol=1e-5, rtol=1e-5)
    torch.cat(outs, 1).sum().backward()


def test_a_reset_cache_forgets(layer):
    x = torch.randn(1, 4, 12)
    params = InferenceParams(max_seqlen=4, max_batch_size=1)
    first = layer(x, inference_params=params)
    params.seqlen_offset = 4
    params.reset(4, 1)
    torch.testing.assert_close(layer(x, inference_params=params), first)


def test_the_cache_keeps_its_state_in_fp32_when_the_layer_is_half():
    layer = Mamba(16, layer_idx=0, dtype=torch.bfloat16)
    conv_state, ssm_state = layer.allocate_inference_cache(1, 8)
    assert (conv_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.float32)
    x = torch.randn(1, 6, 16, dtype=torch.bfloat16)
    steps = torch.cat([layer.step(x[:, t : t + 1], conv_state, ssm_state)[0] for t in range(6)], 1)
    torch.testing.assert_close(steps, layer(x), atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m(torch.randn(1, 2, 12), InferenceParams(2, 1, seqlen_offset=1)), "no state for layer 0"),
        (lambda m: m.step(torch.randn(1, 2, 12), *m.allocate_inference_cache(1, 2)), "one token"),
        (lambda m: Mamba(12, dt_init="zero"), "dt_init"),
        (lambda m: Mamba(12)(torch.randn(1, 2, 12), InferenceParams(2, 1)), "layer_idx"),
    ],
)
def test_misuse_says_what_is_wrong(layer, call, words):
    with pytest.raises(ValueError, match=words):
        call(layer)
