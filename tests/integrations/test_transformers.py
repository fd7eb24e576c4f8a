"""transformers' Mamba and FalconMamba on this package's ops, against their own path in PyTorch.

Runs with transformers 5.23, which finds the ops by itself, and 4.57, which has to be told: see docs/transformers.md.
"""

import importlib
import inspect
import sys
from collections import Counter

import pytest
import torch

from mamba_ssm.errors import BackendError
from mamba_ssm.ops import backend, causal_conv1d, selective_scan_interface, selective_state_update

transformers = pytest.importorskip("transformers")
PACKAGES = ("mamba_ssm", "causal_conv1d")
MODELS = {"mamba": "Mamba", "falcon_mamba": "FalconMamba"}
FINDS_BY_ITSELF = hasattr(transformers.models.mamba.modeling_mamba, "mamba_selective_scan")
LENGTH = 19
MAMBA_1 = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 51, "state_size": 6, "time_step_rank": 3}
_HYBRID = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 51,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Others that look for the same packages: those with a scan of Mamba-1, its step, or a convolution alone.
OTHERS = {
    "jamba": ("Jamba", _HYBRID | {"attn_layer_offset": 2, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4}),
    "lfm2": ("Lfm2", _HYBRID | {"layer_types": ["conv", "full_attention"] * 2}),
    "mamba2": (
        "Mamba2",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 51, "num_heads": 8, "head_dim": 8, "state_size": 16}
        | {"n_groups": 2, "chunk_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen3_next": (
        "Qwen3Next",
        _HYBRID
        | {"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
        | {"linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16},
    ),
}


def import_modeling(name, hide):
    """A copy of transformers' module by itself; hidden, the packages are as if they were not installed."""
    path = f"transformers.models.{name}.modeling_{name}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, path, raising=False)
        for package in PACKAGES if hide else ():
            patch.setitem(sys.modules, package, None)
        importlib.import_module(path)
        return sys.modules.pop(path)


def install(monkeypatch, name, modeling):
    """Let `use_ops` find this copy."""
    monkeypatch.setitem(sys.modules, f"transformers.models.{name}.modeling_{name}", modeling)


def random_model(modeling, name, **changes):
    return randomised(modeling, MODELS[name], MAMBA_1 | changes)


def randomised(modeling, stem, sizes):
    """Every parameter is random, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(**sizes)
    model = getattr(modeling, f"{stem}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def own(name):
    """transformers' own path."""
    return random_model(import_modeling(name, hide=True), name)


@pytest.fixture
def modeling(name, monkeypatch):
    """transformers' modules after use_ops()."""
    from mamba_ssm.integrations.transformers import use_ops

    copies = {each: import_modeling(each, hide=False) for each in MODELS}
    for each, copy in copies.items():
        install(monkeypatch, each, copy)
    use_ops()
    return copies[name]


@pytest.fixture
def ours(name, modeling):
    return random_model(modeling, name)


@pytest.fixture
def ids():
    return torch.randint(1, 51, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def left_padded():
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :7] = 0
    return mask


@pytest.fixture
def calls(monkeypatch):
    """How often each op of this package ran."""
    counted = Counter()
    module = backend.module

    def counting(op, *args, **kwargs):
        counted[op] += 1
        return module(op, *args, **kwargs)

    monkeypatch.setattr(backend, "module", counting)
    return counted


def gradients(model, ids, mask=None):
    """By name, of the mean loss at the tokens that are no padding."""
    model.zero_grad()
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(model, expected_model, ids, mask=None):
    found, expected = gradients(model, ids, mask), gradients(expected_model, ids, mask)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


def test_what_it_is_compared_with_are_transformers_own_ops(own, ids, calls):
    own(ids)
    own.generate(ids, max_new_tokens=2, do_sample=False)
    assert not calls


def test_our_ops_run(ours, ids, calls):
    layers = ours.config.num_hidden_layers
    ours(ids, use_cache=False)
    assert calls["selective_scan"] == calls["causal_conv1d"] == layers
    ours.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert calls == {"selective_scan": 2 * layers, "causal_conv1d": 4 * layers, "selective_state_update": 2 * layers}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_bias": True, "use_conv_bias": False},
        {"expand": 3, "conv_kernel": 3, "tie_word_embeddings": False, "residual_in_fp32": False},
    ],
)
def test_logits(name, modeling, changes, ids):
    expected = random_model(import_modeling(name, hide=True), name, **changes)(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(random_model(modeling, name, **changes)(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_gradients(own, ours, ids, training):
    assert_same_gradients(ours.train(training), own.train(training), ids)
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients(own, ids).values())
    assert len(gradients(own, ids)) == len(list(own.parameters()))


@pytest.mark.parametrize("training", [False, True])
def test_padding_on_the_left(own, ours, ids, left_padded, training):
    own.train(training), ours.train(training)
    real = left_padded.bool()
    expected = own(ids, attention_mask=left_padded).logits
    torch.testing.assert_close(ours(ids, attention_mask=left_padded).logits[real], expected[real], atol=1e-4, rtol=0)
    assert_same_gradients(ours, own, ids, left_padded)
    assert ours.training == training
    assert all(module.training == training for module in ours.modules())


def test_generation(own, ours, ids, left_padded):
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **how), own.generate(ids, **how))
    padded = ids * left_padded
    expected = own.generate(padded, attention_mask=left_padded, **how)
    assert torch.equal(ours.generate(padded, attention_mask=left_padded, **how), expected)


def test_a_token_at_a_time_continues_the_cache(own, ours, ids):
    parts = {"own": [], "ours": []}
    for label, model in (("own", own), ("ours", ours)):
        cache, read = None, 0
        for size in (8, 1, 1, 1):
            more = {} if FINDS_BY_ITSELF or cache is None else {"cache_position": torch.tensor([read])}
            out = model(ids[:, read : read + size], cache_params=cache, use_cache=True, **more)
            cache, read = out.cache_params, read + size
            parts[label].append(out.logits)
    found, expected = (torch.cat(parts[label], 1) for label in ("ours", "own"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found, ours(ids[:, :11]).logits, atol=1e-4, rtol=0)


@pytest.mark.skipif(not FINDS_BY_ITSELF, reason="transformers 4.57 takes one token after the prompt")
def test_several_tokens_after_the_prompt(own, ours, ids):
    """As transformers has it: its scan starts from zero there, only its convolution continues."""
    outs = []
    for model in (own, ours):
        first = model(ids[:, :8], use_cache=True)
        outs.append(model(ids[:, 8:13], cache_params=first.cache_params, use_cache=True).logits)
    torch.testing.assert_close(outs[1], outs[0], atol=1e-4, rtol=0)


@pytest.mark.skipif(not FINDS_BY_ITSELF, reason="transformers 4.57 looks on CUDA devices only")
class TestWithoutACall:
    @pytest.fixture
    def found(self, name):
        return import_modeling(name, hide=False)

    def test_it_finds_our_functions(self, found):
        for function, expected in {
            "mamba_selective_scan": selective_scan_interface.selective_scan_fn,
            "mamba_selective_state_update": selective_state_update.selective_state_update,
            "mamba_inner_fn": selective_scan_interface.mamba_inner_fn,
            "causal_conv1d_fn": causal_conv1d.causal_conv1d_fn,
            "causal_conv1d_update": causal_conv1d.causal_conv1d_update,
        }.items():
            taken = inspect.getclosurevars(getattr(found, function)).nonlocals["implementation"]
            assert taken is expected

    def test_inference(self, found, name, own, ids, left_padded):
        model, real = random_model(found, name), left_padded.bool()
        torch.testing.assert_close(model(ids).logits, own(ids).logits, atol=1e-4, rtol=0)
        expected = own(ids, attention_mask=left_padded).logits[real]
        torch.testing.assert_close(model(ids, attention_mask=left_padded).logits[real], expected, atol=1e-4, rtol=0)
        how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(model.generate(ids, **how), own.generate(ids, **how))

    def test_mamba_trains_through_the_fused_function(self, ids):
        own = random_model(import_modeling("mamba", hide=True), "mamba").train()
        model = random_model(import_modeling("mamba", hide=False), "mamba").train()
        torch.testing.assert_close(model(ids).logits, own(ids).logits, atol=1e-4, rtol=0)
        assert_same_gradients(model, own, ids)
        padded = torch.ones_like(ids)
        padded[0, 12:] = 0  # on the right, where the fused function sees it after the text
        real = padded.bool()
        expected = own(ids, attention_mask=padded).logits[real]
        torch.testing.assert_close(model(ids, attention_mask=padded).logits[real], expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("other", OTHERS)
    def test_other_models_stay_the_same(self, other, ids, calls):
        stem, sizes = OTHERS[other]
        own = randomised(import_modeling(other, hide=True), stem, sizes)
        expected = own(ids).logits
        assert not calls
        model = randomised(import_modeling(other, hide=False), stem, sizes)
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)
        assert calls["causal_conv1d"]
        how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(model.generate(ids, **how), own.generate(ids, **how))
        assert_same_gradients(model.train(), own.train(), ids)

    def test_falcon_mamba_is_told_what_to_call(self, ids):
        model = random_model(import_modeling("falcon_mamba", hide=False), "falcon_mamba").train()
        with pytest.warns(UserWarning, match="use_ops"):
            model(ids)


def test_an_unknown_version_is_refused(monkeypatch):
    from mamba_ssm.integrations.transformers import use_ops

    install(monkeypatch, "mamba", transformers)  # a module with neither way
    with pytest.raises(BackendError, match=transformers.__version__):
        use_ops()
