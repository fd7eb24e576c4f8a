"""Prompts that are read in parts, padded to a few lengths, leave the states and logits of prompts that are not."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.models.prompts import PADDING, PROMPT_TOKENS, Prompt, read_padded
from mamba_ssm.utils.generation import InferenceParams

VOCABULARY = 83


def make_model():
    torch.manual_seed(0)
    config = MambaConfig(d_model=24, n_layer=3, vocab_size=VOCABULARY, ssm_cfg={"d_state": 4})
    return MambaLMHeadModel(config).eval()


MODEL = make_model()


def ids_of(length, seed=0):
    return random.Random(seed).choices(range(VOCABULARY), k=length)


def whole(model, ids):
    """Logits (1, V) after ids, and the states."""
    params = InferenceParams(len(ids), 1)
    logits = model(torch.tensor([ids], device=model.lm_head.weight.device), inference_params=params).logits[:, -1]
    return logits, params.key_value_memory_dict


def assert_same(got, want):
    (logits, states), (want_logits, want_states) = got, want
    torch.testing.assert_close(logits, want_logits, atol=5e-5, rtol=1e-4)
    for layer, state in want_states.items():
        for part, expected in zip(states[layer], state, strict=True):
            torch.testing.assert_close(part, expected, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
@settings(max_examples=30)
@given(parts=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), min_size=1, max_size=4))
def test_padding_in_front_of_any_part_changes_nothing(parts):
    """parts: tokens, and padding before them."""
    ids = ids_of(sum(tokens for tokens, _ in parts))
    states = MODEL.allocate_inference_cache(1, 0)
    params = InferenceParams(0, 1, seqlen_offset=1, key_value_memory_dict=states)
    begin = 0
    for tokens, padding in parts:
        part = [PADDING] * padding + ids[begin : begin + tokens]
        logits = read_padded(MODEL, params, torch.tensor([part]))
        begin += tokens
    assert_same((logits, states), whole(MODEL, ids))


def read_all(prompt, ids):
    for begin in range(0, len(ids), PROMPT_TOKENS):
        logits = prompt.read(ids[begin : begin + PROMPT_TOKENS], begin)
    return logits.clone(), prompt.states


@torch.inference_mode()
def check_prompts(model):
    """One after the other in the same place, of all kinds of lengths."""
    pool = torch.cuda.graph_pool_handle() if model.lm_head.weight.is_cuda else None
    prompt = Prompt(model, pool)
    for seed, length in enumerate((5, 1, 32, 33, 700, 128, 2, PROMPT_TOKENS, PROMPT_TOKENS + 1)):
        ids = ids_of(length, seed)
        assert_same(read_all(prompt, ids), whole(model, ids))


def test_a_prompt_does_not_see_the_one_before():
    check_prompts(MODEL)


@pytest.mark.gpu
def test_on_a_gpu_too():
    check_prompts(make_model().cuda())
