"""Checkpoints in the original's layout under transformers' AutoModelForCausalLM, in versions 5.23 and 4.57."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig

transformers = pytest.importorskip("transformers")
HOW = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module", autouse=True)
def registered():
    from mamba_ssm.integrations.auto_model import register

    register()
    register()  # a second time is no error


def save(folder, **changes):
    """A model in the original's layout, with random parameters throughout."""
    torch.manual_seed(0)
    sizes = {"d_model": 24, "n_layer": 2, "vocab_size": 51, "ssm_cfg": {"d_state": 6}}
    model = MambaLMHeadModel(MambaConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def model(tmp_path):
    return save(tmp_path)


@pytest.fixture
def auto(model, tmp_path):
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.fixture
def ids():
    return torch.randint(1, 51, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"rms_norm": False, "residual_in_fp32": False}])
def test_the_same_model(changes, ids, tmp_path):
    model = save(tmp_path, **changes)
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not auto.training
    assert torch.equal(auto(ids).logits, model(ids).logits)
    assert (auto.lm_head.weight is auto.backbone.embedding.weight) == model.config.tie_embeddings


def test_the_published_file_with_its_tied_head(model, ids, tmp_path):
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(auto(ids).logits, model(ids).logits)


def test_half_precision_leaves_the_decays_in_fp32(model, tmp_path):
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    mixer = auto.backbone.layers[0].mixer
    assert (mixer.in_proj.weight.dtype, mixer.A_log.dtype, mixer.D.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


def test_greedy_generation(auto, model, ids):
    expected = model.generate(ids, max_length=30)
    assert torch.equal(auto.generate(ids, max_new_tokens=19, **HOW), expected)
    assert torch.equal(auto.generate(ids, max_new_tokens=19, use_cache=False, **HOW), expected)


def test_prompts_of_several_lengths(auto, ids):
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    both = auto.generate(ids * mask, attention_mask=mask, max_new_tokens=9, **HOW)
    alone = auto.generate(ids[:1, 4:], max_new_tokens=9, **HOW)
    assert torch.equal(both[:1, 11:], alone[:, 7:])


def test_beams_keep_their_own_states(auto, ids):
    found = auto.generate(ids, num_beams=3, max_new_tokens=12, **HOW)
    assert torch.equal(found, auto.generate(ids, num_beams=3, max_new_tokens=12, use_cache=False, **HOW))
    assert not torch.equal(found, auto.generate(ids, max_new_tokens=12, **HOW))


def test_any_split_of_a_text(auto, ids):
    cache, parts = None, []
    with torch.no_grad():
        for part in ids.split([4, 1, 5, 1], dim=1):
            out = auto(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), auto(ids).logits, atol=1e-5, rtol=0)


def test_loss_and_its_gradients(auto, model, ids):
    labels = ids.clone()
    labels[1, 5:] = -100
    loss = auto.train()(ids, labels=labels).loss
    loss.backward()
    logits = model.train()(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (key, found), wanted in zip(auto.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, msg=lambda m, key=key: f"{key}: {m}")


def test_what_it_saves_both_load(auto, model, ids, tmp_path):
    auto.save_pretrained(tmp_path / "saved")
    assert torch.equal(MambaLMHeadModel.from_pretrained(tmp_path / "saved")(ids).logits, model(ids).logits)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_new_model_begins_as_the_original_does(model, tmp_path):
    """And not as transformers would: it sets every bias to zero."""
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    mixer = transformers.AutoModelForCausalLM.from_config(config).backbone.layers[0].mixer
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() > 0.9e-3
    assert steps.max() < 0.11


def test_a_question_is_searched_for(ids, tmp_path):
    esi = {"n_enc": 1, "d_search": 16, "d_read": 16, "n_read": 1}
    model = save(tmp_path, esi=esi)
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    text = torch.randint(1, 51, (1, 400), generator=torch.Generator().manual_seed(2))
    expected = model(text, ids[:1]).logits
    assert not torch.equal(expected, model(text).logits)
    assert torch.equal(auto(text, question_ids=ids[:1]).logits, expected)
    found = auto.generate(text, question_ids=ids[:1], max_new_tokens=6, **HOW)
    assert torch.equal(found, model.generate(text, max_length=406, question_ids=ids[:1]))
    with pytest.raises(ValueError, match="num_beams=1"):
        auto.generate(text, question_ids=ids[:1], num_beams=2, max_new_tokens=6, **HOW)


def test_weights_of_another_model_are_refused(model, tmp_path):
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("backbone.norm_f.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"backbone\.norm_f\.weight"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_other_configs_are_left_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ValueError, match="model_type"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    transformers.MambaConfig(hidden_size=8).save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is transformers.MambaConfig


def test_a_part_that_is_not_here_is_refused(tmp_path):
    config = MambaConfig(d_model=24, n_layer=1, vocab_size=51).to_dict() | {"attn_layer_idx": [0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="attention"):
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
