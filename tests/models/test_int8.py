"""Weights in int8: how far from what they were, and that a model with them is the same function, rounded."""

import pytest
import torch
from torch import nn

from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.modules.int8_linear import Int8Linear
from mamba_ssm.utils.generation import InferenceParams


def build(dtype=torch.float32):
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(d_model=64, n_layer=2, vocab_size=90), dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_no_weight_is_further_off_than_half_a_step(dtype):
    linear = nn.Linear(33, 7, dtype=dtype)
    linear.weight[3] = 0
    rounded = Int8Linear(linear)
    back = rounded(torch.eye(33, dtype=torch.float32)) - rounded.bias.float() if dtype == torch.float32 else None
    step = linear.weight.float().abs().amax(1, keepdim=True) / 127
    exact = rounded.weight * rounded.scale.unsqueeze(1)
    assert ((exact - linear.weight.float()).abs() <= 0.5001 * step).all()
    assert rounded.weight.abs().max() == 127
    if back is not None:
        torch.testing.assert_close(back.t(), exact, atol=1e-6, rtol=1e-5)
    x = torch.randn(5, 33, dtype=dtype)
    assert rounded(x).dtype == dtype
    assert (rounded(x) - linear(x)).float().norm() < 0.02 * linear(x).float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_reading_and_decoding_agree_and_are_near_the_model_before(dtype):
    model, ids = build(dtype), torch.randint(90, (2, 12))
    before = model(ids).logits.float()
    assert model.to_int8() is model
    after = model(ids).logits.float()
    assert 0 < (after - before).norm() < 0.03 * before.norm()
    params, steps = InferenceParams(12, 2), []
    for i in range(12):
        steps.append(model(ids[:, i : i + 1], inference_params=params).logits.float())
        params.seqlen_offset += 1
    assert (torch.cat(steps, 1) - after).norm() < {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype] * after.norm()


@torch.no_grad()
def test_twice_is_once_and_the_embedding_is_not_touched():
    model = build()
    embedding = model.backbone.embedding.weight.clone()
    once = model.to_int8()(torch.arange(9)[None]).logits
    assert torch.equal(model.to_int8()(torch.arange(9)[None]).logits, once)
    assert torch.equal(model.backbone.embedding.weight, embedding)


def test_saving_it_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="before to_int8"):
        build().to_int8().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
