"""ESI in a folder of its own, on top of a checkpoint: there and back, and what does not belong together."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mamba_ssm.errors import CheckpointError
from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

SIZES = {"n_enc": 1, "d_search": 8, "segment": 24, "warmup": 8, "window": 8, "top_k": 2, "d_read": 16, "n_read": 1}
PLAIN = MambaConfig(d_model=16, n_layer=2, vocab_size=64, ssm_cfg={"d_state": 4})
IDS = torch.arange(60).reshape(2, 30) + 1
QUESTION = torch.tensor([[3, 5, 7], [40, 2, 9]])


@pytest.fixture
def folder(tmp_path):
    """A checkpoint without ESI."""
    torch.manual_seed(0)
    MambaLMHeadModel(PLAIN).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def trained(folder):
    """The same with ESI whose every parameter is another than a new one's."""
    model = MambaLMHeadModel.from_pretrained(folder)
    model.config = replace(model.config, esi=asdict(ESIConfig(**SIZES)))
    model.esi = model.new_esi("cpu", None)
    with torch.no_grad():
        for parameter in model.esi.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model.eval()


@pytest.fixture
def adapter(trained, tmp_path):
    trained.save_esi(tmp_path / "esi")
    return tmp_path / "esi"


@torch.no_grad()
def test_there_and_back(trained, adapter, folder):
    plain, again = (MambaLMHeadModel.from_pretrained(folder, esi=esi) for esi in (None, adapter))
    assert sorted(path.name for path in adapter.iterdir()) == ["esi.json", "esi.safetensors"]
    assert all(key.startswith("esi.") for key in load_file(adapter / "esi.safetensors"))
    assert again.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(tensor, trained.state_dict()[key]) for key, tensor in again.state_dict().items())
    assert torch.equal(again(IDS).logits, plain(IDS).logits)
    injected, found = again(IDS, QUESTION), trained(IDS, QUESTION)
    assert torch.equal(injected.logits, found.logits)
    assert torch.equal(injected.hits.scores, found.hits.scores)
    assert not torch.equal(injected.logits, plain(IDS).logits)


def test_it_becomes_part_of_a_checkpoint_that_is_saved_whole(adapter, folder, tmp_path):
    model = MambaLMHeadModel.from_pretrained(folder, esi=adapter)
    model.save_pretrained(tmp_path / "whole")
    whole = MambaLMHeadModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole(IDS, QUESTION).logits, model(IDS, QUESTION).logits)


def test_it_takes_the_place_of_the_esi_that_a_checkpoint_has(trained, adapter, tmp_path):
    other = MambaConfig(**{**asdict(PLAIN), "esi": {**SIZES, "d_search": 4}})
    model = MambaLMHeadModel(other)
    model.load_state_dict({k: v for k, v in trained.state_dict().items() if "esi." not in k}, strict=False)
    model.save_pretrained(tmp_path / "other")
    again = MambaLMHeadModel.from_pretrained(tmp_path / "other", esi=adapter)
    assert torch.equal(again(IDS, QUESTION).logits, trained(IDS, QUESTION).logits)


def test_it_fits_the_checkpoint_in_another_layout_and_precision(trained, adapter, folder, tmp_path):
    from mamba_ssm.models.convert import convert

    convert(folder, tmp_path / "hf")
    again = MambaLMHeadModel.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16, esi=adapter)
    assert again.esi.search.key.weight.dtype == torch.bfloat16
    assert torch.equal(again.esi.search.key.weight, trained.esi.search.key.weight.bfloat16())


def test_another_checkpoint_is_refused_by_name(adapter, folder, tmp_path):
    model = MambaLMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.backbone.layers[1].mixer.in_proj.weight.mul_(1.001)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=r"was trained for plain, whose weights are not those of .*tuned"):
        MambaLMHeadModel.from_pretrained(tmp_path / "tuned", esi=adapter)
    MambaLMHeadModel(replace(PLAIN, d_model=32)).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="was trained for plain"):
        MambaLMHeadModel.from_pretrained(tmp_path / "wide", esi=adapter)


def change_sizes(adapter, **sizes):
    about = json.loads((adapter / "esi.json").read_text())
    (adapter / "esi.json").write_text(json.dumps(about | {"esi": about["esi"] | sizes}))


def change_tensors(adapter, change):
    tensors = load_file(adapter / "esi.safetensors")
    change(tensors)
    save_file(tensors, adapter / "esi.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "esi.safetensors").write_bytes((f / "esi.safetensors").read_bytes()[:999]), "is damaged"),
        (lambda f: (f / "esi.safetensors").unlink(), "no esi.safetensors"),
        (lambda f: (f / "esi.json").unlink(), "no esi.json"),
        (lambda f: (f / "esi.json").write_text("{"), "esi.json is not JSON"),
        (lambda f: (f / "esi.json").write_text("{}"), "does not describe ESI"),
        (lambda f: (f / "esi.json").write_text('{"esi": 3, "checkpoint": 1, "fingerprint": 2}'), "does not describe"),
        (lambda f: change_sizes(f, window=7), "window must be even"),
        (lambda f: change_sizes(f, depth=7), "unknown ESI settings depth"),
        (lambda f: change_sizes(f, d_read=32), "does not fit esi.json"),
        (lambda f: change_sizes(f, n_read=2), "does not fit esi.json"),
        (lambda f: change_tensors(f, lambda t: t.pop("esi.injection.gate")), "esi.injection.gate .*does not fit"),
        (lambda f: change_tensors(f, lambda t: t.update(lm_head=torch.ones(1))), "lm_head .*does not fit"),
    ],
)
def test_a_damaged_folder_gives_one_line_that_names_the_fault(adapter, folder, damage, words):
    damage(adapter)
    with pytest.raises(CheckpointError, match=words) as caught:
        MambaLMHeadModel.from_pretrained(folder, esi=adapter)
    assert "\n" not in str(caught.value)
    assert adapter.name in str(caught.value)


def test_only_esi_as_it_was_trained_is_saved(trained, folder, tmp_path):
    with pytest.raises(CheckpointError, match="has none"):
        MambaLMHeadModel.from_pretrained(folder).save_esi(tmp_path / "none")
    with pytest.raises(CheckpointError, match="int8"):
        copy.deepcopy(trained).to_int8().save_esi(tmp_path / "none")
    with pytest.raises(CheckpointError, match="fp32"):
        trained.half().save_esi(tmp_path / "none")
    assert not (tmp_path / "none").exists()
