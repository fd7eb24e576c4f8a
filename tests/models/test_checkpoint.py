"""Loading and saving checkpoints: every layout, and one clear sentence for every way a file can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig

IDS = torch.tensor([[1, 5, 2, 7, 3]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(d_model=16, n_layer=2, vocab_size=21, ssm_cfg={"d_state": 4}))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def original(model, folder, tmp_path) -> Path:
    """As the published checkpoints lie: one pytorch_model.bin, with the tied head in it."""
    target = tmp_path / "original"
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    return target


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(model, folder):
    again = MambaLMHeadModel.from_pretrained(folder)
    assert again.config == model.config
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert again.lm_head.weight is again.backbone.embedding.weight
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    again.save_pretrained(folder)  # over the very files that it was loaded from
    assert torch.equal(MambaLMHeadModel.from_pretrained(str(folder))(IDS).logits, model(IDS).logits)


def test_an_untied_head_is_kept(tmp_path):
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=1, vocab_size=8, tie_embeddings=False))
    model.save_pretrained(tmp_path)
    again = MambaLMHeadModel.from_pretrained(tmp_path)
    assert again.lm_head.weight is not again.backbone.embedding.weight
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_checkpoint_from_before_esi_keeps_its_logits_when_esi_is_added(model, folder):
    change_config(folder, esi={})
    with_esi = MambaLMHeadModel.from_pretrained(folder)
    assert any(name.startswith("esi.") for name, _ in with_esi.named_parameters())
    assert not any(t.is_meta for t in (*with_esi.parameters(), *with_esi.buffers()))
    assert torch.equal(with_esi(IDS).logits, model(IDS).logits)
    with_esi.save_pretrained(folder)
    again = MambaLMHeadModel.from_pretrained(folder)
    assert all(torch.equal(p, q) for p, q in zip(with_esi.parameters(), again.parameters(), strict=True))


def test_dtype_and_the_parameters_that_stay_in_fp32(folder):
    model = MambaLMHeadModel.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    dtypes = {name.rpartition("mixer.")[2]: p.dtype for name, p in model.named_parameters()}
    assert dtypes["A_log"] == dtypes["D"] == torch.float32
    assert dtypes["in_proj.weight"] == torch.bfloat16
    assert model(IDS).logits.isfinite().all()


def test_loaded_parameters_can_be_trained(folder):
    model = MambaLMHeadModel.from_pretrained(folder)
    model(IDS).logits.square().sum().backward()
    assert all(p.grad is not None and p.requires_grad for p in model.parameters())


def test_the_originals_file(model, original):
    assert torch.equal(MambaLMHeadModel.from_pretrained(original)(IDS).logits, model(IDS).logits)


def test_torchs_old_file_format(model, original):
    torch.save(model.state_dict(), original / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(MambaLMHeadModel.from_pretrained(original)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards(model, folder, kind):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = kind.split(".")
    weight_map = {key: f"{stem}-0000{i % 2 + 1}-of-00002.{suffix}" for i, key in enumerate(tensors)}
    for name in set(weight_map.values()):
        part = {key: tensors[key] for key in tensors if weight_map[key] == name}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(MambaLMHeadModel.from_pretrained(folder)(IDS).logits, model(IDS).logits)
    (folder / f"{stem}-00002-of-00002.{suffix}").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        MambaLMHeadModel.from_pretrained(folder)


def test_an_index_may_not_leave_its_folder(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"backbone.embedding.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"\.\./secret"):
        MambaLMHeadModel.from_pretrained(folder)


def test_the_padded_vocabulary(tmp_path):
    config = MambaConfig(d_model=16, n_layer=1, vocab_size=9, pad_vocab_size_multiple=8)
    model = MambaLMHeadModel(config)
    assert model(IDS).logits.shape == (1, 5, 16)
    with torch.no_grad():
        model.backbone.embedding.weight[9:] = model.backbone.embedding.weight[:7] * 50  # padding that would win
    assert model.generate(IDS, 12, vocab_size=9, top_k=0, seed=0).max() < 9


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: truncate(f / "model.safetensors"), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors or .*pytorch_model.bin"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: truncate(f / "config.json"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "list"),
        (lambda f: change_config(f, d_model=32), r"in_proj|embedding.*\(24, 16\).*\(24, 32\)"),
        (lambda f: change_config(f, n_layer=3), r"lacks backbone\.layers\.2"),
        (lambda f: change_config(f, n_layer=1), r"holds backbone\.layers\.1.* and \d+ more"),
        (lambda f: change_config(f, n_layer=10**12), "n_layer is 1000000000000"),
        (lambda f: change_config(f, ssm_cfg={"layer": "Mamba2"}), "Mamba2"),
        (lambda f: change_weights(f, lambda t: t.pop("backbone.norm_f.weight")), "lacks backbone.norm_f.weight"),
        (lambda f: change_weights(f, lambda t: t.update(extra=torch.ones(1))), "holds extra"),
        (lambda f: change_weights(f, lambda t: t.update({"lm_head.weight": torch.ones(24, 16)})), "tie_embeddings"),
        (
            lambda f: change_weights(f, lambda t: t.update({"backbone.norm_f.weight": torch.ones(16).int()})),
            r"norm_f.weight holds torch.int32",
        ),
    ],
)
def test_a_damaged_folder_gives_one_line_that_names_the_fault(folder, damage, words):
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        MambaLMHeadModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert folder.name in str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"backbone.embedding.weight": Evil()}, "more than tensors"),
        ([torch.ones(1)], "not a table"),
        ({"a": 1}, "table"),
    ],
)
def test_a_bin_file_runs_nothing_and_holds_tensors_only(original, content, words, capsys):
    torch.save(content, original / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=words):
        MambaLMHeadModel.from_pretrained(original)
    assert capsys.readouterr().out == ""


def test_a_truncated_bin_file(original):
    truncate(original / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        MambaLMHeadModel.from_pretrained(original)


def test_a_failed_save_leaves_the_old_checkpoint(model, folder, monkeypatch):
    import safetensors.torch

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_autocast_in_bf16_is_close_and_finite(model):
    ids = torch.randint(0, 21, (2, 33), generator=torch.Generator().manual_seed(0))
    exact = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids).logits
        torch.nn.functional.cross_entropy(rough[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    assert rough.isfinite().all()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
