"""Long inputs go through the layers in parts, and a few positions through a head of their own: nothing else changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.models import mixer_seq_simple
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams


def new_model() -> MambaLMHeadModel:
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(d_model=16, n_layer=2, vocab_size=50, rms_norm=True, fused_add_norm=True))


@settings(max_examples=25, derandomize=True)
@given(at_once=st.integers(1, 40), rows=st.integers(1, 3), length=st.integers(2, 40), last=st.sampled_from([0, 1, 3]))
def test_any_size_of_a_part_gives_the_same_logits_and_state(at_once, rows, length, last):
    model, ids = new_model(), torch.randint(50, (rows, length))
    with torch.no_grad():
        whole, params = model(ids, num_last_tokens=last).logits, InferenceParams(99, rows)
        model(ids, inference_params=params)
        before = dict(mixer_seq_simple.TOKENS_AT_ONCE)
        mixer_seq_simple.TOKENS_AT_ONCE["cpu"] = at_once
        try:
            torch.testing.assert_close(model(ids, num_last_tokens=last).logits, whole, rtol=1e-4, atol=1e-5)
            again = InferenceParams(99, rows)
            # A cache that holds another text: offset 0 begins a new one.
            model(ids.flip(1), inference_params=again)
            logits = model(ids, inference_params=again, num_last_tokens=last).logits
        finally:
            mixer_seq_simple.TOKENS_AT_ONCE.update(before)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    assert again.seqlen_offset == 0
    for layer, state in params.key_value_memory_dict.items():
        torch.testing.assert_close(again.key_value_memory_dict[layer], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_a_few_positions_have_the_head_s_logits(rows):
    model, ids = new_model(), torch.randint(50, (rows, 7))
    with torch.no_grad():
        hidden = model.backbone(ids)[:, -1:]
        got = model(ids, num_last_tokens=1).logits
        torch.testing.assert_close(got, model.lm_head(hidden))
    with_gradients = model(ids, num_last_tokens=1).logits
    assert with_gradients.requires_grad
    torch.testing.assert_close(with_gradients, got)
