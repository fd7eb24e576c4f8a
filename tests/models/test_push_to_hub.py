"""What MambaLMHeadModel.push_to_hub sends. The hub's client is replaced where it would use the network."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig

ADDRESS = "https://hub.invalid/someone/mine/commit/1"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(d_model=16, n_layer=1, vocab_size=8))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Keeps the files that were uploaded in tmp_path / "hub", and what was asked for."""
    asked = {}

    def create_repo(api, repo_id, **options):
        asked["repo"] = {"token": api.token, "repo_id": repo_id, **options}
        return SimpleNamespace(repo_id=f"someone/{repo_id.rpartition('/')[2]}")

    def upload_folder(api, *, folder_path, **options):
        shutil.copytree(folder_path, tmp_path / "hub")
        asked["commit"] = {"token": api.token, **options}
        return SimpleNamespace(commit_url=ADDRESS)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return asked


def test_what_is_uploaded_is_the_model(model, hub, tmp_path):
    assert model.push_to_hub("mine", private=True, token="t", commit_message="why", revision="branch") == ADDRESS
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(MambaLMHeadModel.from_pretrained(tmp_path / "hub")(ids).logits, model.eval()(ids).logits)
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["config.json", "model.safetensors"]
    assert hub["repo"] == {"token": "t", "repo_id": "mine", "private": True, "repo_type": "model", "exist_ok": True}
    # The name that the hub gave, with the account's in front.
    assert hub["commit"] == {"token": "t", "repo_id": "someone/mine", "commit_message": "why", "revision": "branch"}


def test_a_name_that_cannot_be_is_said(model):
    with pytest.raises(CheckpointError, match="could not upload to a/b/c") as caught:
        model.push_to_hub("a/b/c")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, HFValidationError)


def test_a_hub_out_of_reach_is_said(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(CheckpointError, match="could not upload to someone/mine"):
        model.push_to_hub("someone/mine", token="t")
