"""Conversion between the two layouts: every bit of every tensor, the same logits in transformers, clear refusals."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.cli.main import app
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.convert import convert

IDS = torch.tensor([[1, 5, 2, 7, 3, 19, 0, 4]])
SHAPES = [
    {},
    {"tie_embeddings": False, "residual_in_fp32": False},
    {"ssm_cfg": {"d_state": 4, "d_conv": 3, "expand": 3, "dt_rank": 2, "bias": True, "conv_bias": False}},
]


def random_model(**changes):
    """Every parameter is random, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    model = MambaLMHeadModel(MambaConfig(**{"d_model": 16, "n_layer": 2, "vocab_size": 21} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def original(tmp_path):
    random_model().save_pretrained(tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def modeling(transformers):
    """transformers' own Mamba: it would take our ops from mamba_ssm, were it not hidden."""
    name = "transformers.models.mamba.modeling_mamba"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, name, raising=False)
        patch.setitem(sys.modules, "mamba_ssm", None)
        patch.setitem(sys.modules, "causal_conv1d", None)
        return importlib.import_module(name)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor.view(torch.uint8), other[key].view(torch.uint8)), key


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back(changes, dtype, tmp_path):
    model = random_model(**changes).to(dtype)
    with torch.no_grad():
        model.backbone.embedding.weight[3, 3] = torch.nan  # bits, not values
    model.save_pretrained(tmp_path / "a")
    assert convert(tmp_path / "a", tmp_path / "b") == "transformers"
    assert convert(tmp_path / "b", tmp_path / "c") == "original"
    assert convert(tmp_path / "c", tmp_path / "d", to="transformers") == "transformers"
    assert_same_bits(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c"))
    assert_same_bits(tensors_of(tmp_path / "b"), tensors_of(tmp_path / "d"))
    assert config_of(tmp_path / "b") == config_of(tmp_path / "d")
    assert "backbone.embeddings.weight" in tensors_of(tmp_path / "b")
    assert config_of(tmp_path / "b")["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("changes", SHAPES)
def test_transformers_gives_the_same_logits(changes, modeling, tmp_path):
    model = random_model(**changes)
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b")
    theirs, report = modeling.MambaForCausalLM.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    logits = theirs.eval()(IDS).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, model(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_from_what_transformers_wrote(tied, transformers, modeling, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 51, "state_size": 6, "tie_word_embeddings": tied}
    theirs = modeling.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c")
    assert_same_bits(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c"))
    assert config_of(tmp_path / "b")["d_model"] == 24
    ours = MambaLMHeadModel.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    again = modeling.MambaForCausalLM.from_pretrained(tmp_path / "c")
    assert torch.equal(again.eval()(IDS).logits, theirs(IDS).logits)


def test_the_originals_bin_file_with_its_tied_head(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path / "a")
    expected = tensors_of(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "a" / "pytorch_model.bin")
    convert(tmp_path / "a", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c")
    assert_same_bits(expected, tensors_of(tmp_path / "c"))


def test_from_shards(original, tmp_path):
    expected = tensors_of(original)
    keys = sorted(expected)
    parts = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for file, names in parts.items():
        save_file({key: expected[key] for key in names}, original / file)
    index = {"weight_map": {key: file for file, names in parts.items() for key in names}}
    (original / "model.safetensors.index.json").write_text(json.dumps(index))
    (original / "model.safetensors").unlink()
    convert(original, tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c")
    assert_same_bits(expected, tensors_of(tmp_path / "c"))


def test_falcon_mamba_is_refused(transformers, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 21}
    transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**sizes)).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="'falcon_mamba'"):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_config_with_the_keys_of_both_layouts_is_transformers(original, tmp_path):
    """As conversions by transformers' first script are: config.json kept what it was made from."""
    convert(original, tmp_path / "b")
    both = config_of(original) | config_of(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text(json.dumps(both))
    assert convert(tmp_path / "b", tmp_path / "c") == "original"
    assert torch.equal(
        MambaLMHeadModel.from_pretrained(tmp_path / "b")(IDS).logits,
        MambaLMHeadModel.from_pretrained(original)(IDS).logits,
    )


def test_tokenizer_files_go_along_and_nothing_else(original, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "notes.txt"):
        (original / name).write_text(f"content of {name}")
    convert(original, tmp_path / "new" / "b")
    written = sorted(path.name for path in (tmp_path / "new" / "b").iterdir())
    assert written == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert (tmp_path / "new" / "b" / "tokenizer.json").read_text() == "content of tokenizer.json"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]


@pytest.mark.parametrize("present", [[], ["tokenizer.json", "special_tokens_map.json"]])
def test_a_checkpoint_on_the_hub(present, original, tmp_path, monkeypatch):
    asked = []

    def download(repository, name):
        asked.append(name)
        if not (original / name).is_file():
            raise EntryNotFoundError(name)
        return str(original / name)

    for name in present:
        (original / name).write_text("{}")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    convert("someone/converted-here", tmp_path / "b")
    written = {path.name for path in (tmp_path / "b").iterdir()}
    assert written == {"config.json", "model.safetensors", *present}
    assert present or asked.count("tokenizer_config.json") == 0  # not asked for one after another, in vain


def test_an_empty_target_is_taken_and_any_other_is_left_alone(original, tmp_path):
    (tmp_path / "empty").mkdir()
    convert(original, tmp_path / "empty")
    before = tensors_of(tmp_path / "empty")
    for target in (tmp_path / "empty", original, original / "config.json"):
        with pytest.raises(CheckpointError, match="not an empty folder"):
            convert(original, target)
    assert_same_bits(before, tensors_of(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"esi": {"n_enc": 1, "d_search": 16, "d_read": 16, "n_read": 1}}, "embedding search and injection"),
        ({"rms_norm": False}, "LayerNorm"),
        ({"ssm_cfg": {"expand": 1.5}}, "expand 1.5"),
    ],
)
def test_what_transformers_cannot_express(changes, words, tmp_path):
    random_model(**changes).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_nothing_to_convert(original, tmp_path):
    with pytest.raises(CheckpointError, match="original already"):
        convert(original, tmp_path / "b", to="original")


def test_a_failure_leaves_nothing(original, tmp_path, monkeypatch):
    def full_disk(source, target):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    (original / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(original, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_damaged_weights_are_refused(original, tmp_path):
    tensors = tensors_of(original)
    tensors.pop("backbone.norm_f.weight")
    save_file(tensors, original / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks backbone\.norm_f"):
        convert(original, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_command(original, tmp_path):
    done = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "b"), "--to", "transformers"])
    assert done.exit_code == 0, done.output
    assert config_of(tmp_path / "b")["model_type"] == "mamba"
    failed = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "b")])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("mamba-esi: ")
    assert failed.stderr.count("\n") == 1
