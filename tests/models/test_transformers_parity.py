"""The same weights give the same logits and gradients here and in transformers' MambaForCausalLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]


def random_transformers_model(**changes):
    """Every parameter is random, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 51, "state_size": 6, "time_step_rank": 2}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    return random_transformers_model()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return MambaLMHeadModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 51, (2, 23), generator=torch.Generator().manual_seed(1))


def logits_in_chunks(model, ids, lengths):
    params = InferenceParams(max_seqlen=ids.shape[1], max_batch_size=ids.shape[0])
    parts = []
    with torch.no_grad():
        for chunk in ids.split(lengths, dim=1):
            parts.append(model(chunk, inference_params=params).logits)
            params.seqlen_offset += chunk.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_bias": True, "use_conv_bias": False},
        {"expand": 3, "conv_kernel": 3, "time_step_rank": "auto"},
        {"tie_word_embeddings": False, "residual_in_fp32": False},
    ],
)
def test_prefill(changes, ids, tmp_path):
    theirs = random_transformers_model(**changes)
    theirs.save_pretrained(tmp_path)
    ours = MambaLMHeadModel.from_pretrained(tmp_path)
    expected = theirs(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=0)


def test_step_by_step(ours, theirs, ids):
    expected = theirs(ids).logits
    torch.testing.assert_close(logits_in_chunks(ours, ids, [1] * 23), expected, atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_split_of_the_prefill(ours, theirs, ids, data):
    lengths = []
    while sum(lengths) < 23:
        lengths.append(data.draw(st.integers(1, 23 - sum(lengths))))
    torch.testing.assert_close(logits_in_chunks(ours, ids, lengths), theirs(ids).logits, atol=1e-4, rtol=0)


def test_greedy_generation(ours, theirs, ids):
    expected = theirs.generate(ids, max_length=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(ours.generate(ids, max_length=40), expected)


def test_gradients(ours, theirs, ids):
    target = ids.roll(-1, 1).flatten()
    for model in (ours, theirs):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), target).backward()
    mine = {name.replace("embedding.", "embeddings."): p.grad for name, p in ours.named_parameters()}
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert mine.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        assert gradient.abs().max() > 1e-7, name
        torch.testing.assert_close(mine[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_the_originals_layout_holds_the_same_model(ours, theirs, ids, tmp_path):
    weights = {k.replace("embeddings.", "embedding."): v for k, v in theirs.state_dict().items()}
    weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config = {"d_model": 24, "n_layer": 3, "vocab_size": 51, "ssm_cfg": {"d_state": 6, "dt_rank": 2}, "rms_norm": True}
    config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = MambaLMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(model(ids).logits, ours(ids).logits)


@pytest.mark.slow
def test_the_published_130m_geometry(tmp_path):
    """The report that the project publishes, made anew."""
    result = tmp_path / "parity.json"
    subprocess.run([sys.executable, ROOT / "evals" / "transformers_parity.py", "--out", result], check=True)
    differences = json.loads(result.read_text())["max_abs_difference"]
    assert set(differences) >= {"prefill", "decode", "chunked"}
    assert all(value <= 1e-4 for value in differences.values())
