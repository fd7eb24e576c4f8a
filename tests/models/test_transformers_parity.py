"""The same weights give the same logits and gradients here and in transformers' MambaForCausalLM."""

import importlib
import inspect
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
MODELING = "transformers.models.mamba.modeling_mamba"


def import_modeling(with_our_ops: bool):
    """transformers takes its ops from the packages of these names if it finds them: hidden, it has to use its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, MODELING, raising=False)
        if not with_our_ops:
            patch.setitem(sys.modules, "mamba_ssm", None)
            patch.setitem(sys.modules, "causal_conv1d", None)
        return importlib.import_module(MODELING)


OWN = import_modeling(with_our_ops=False)


def random_transformers_model(modeling=OWN, **changes):
    """Every parameter is random, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 51, "state_size": 6, "time_step_rank": 2}
    model = modeling.MambaForCausalLM(transformers.MambaConfig(**sizes | changes))
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


def test_the_comparison_is_with_transformers_own_ops():
    for function in (OWN.mamba_selective_scan, OWN.mamba_selective_state_update, OWN.causal_conv1d_fn):
        assert not inspect.getclosurevars(function).nonlocals["is_new_implementation"]


def test_transformers_on_our_ops_is_the_same_model(theirs, ids):
    modeling = import_modeling(with_our_ops=True)
    assert inspect.getclosurevars(modeling.mamba_selective_scan).nonlocals["is_new_implementation"]
    model = random_transformers_model(modeling)
    expected = theirs(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.train()(ids).logits, expected, atol=1e-4, rtol=0)  # mamba_inner_fn
    how = {"max_length": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.eval().generate(ids, **how), theirs.generate(ids, **how))


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


@settings(max_examples=30)
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
