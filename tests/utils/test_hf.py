"""Names of models: on a hub (a real HTTP server on this machine), in its cache, in a folder, and in no place at all."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf

CHILD = """
import json, sys, torch
from mamba_ssm import MambaLMHeadModel
from mamba_ssm.errors import CheckpointError
results = {}
for name in sys.argv[1:]:
    try:
        results[name] = MambaLMHeadModel.from_pretrained(name)(torch.tensor([[1, 2, 3]])).logits.sum().item()
    except CheckpointError as error:
        results[name] = str(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(d_model=16, n_layer=1, vocab_size=8))


@pytest.fixture(scope="module")
def hub(model, tmp_path_factory):
    """Serves what huggingface_hub asks for: HEAD and GET of /{repo}/resolve/main/{file}."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    files = {f"/state-spaces/mamba-130m/resolve/main/{path.name}": path.read_bytes() for path in folder.iterdir()}
    files["/someone/empty/resolve/main/config.json"] = files["/state-spaces/mamba-130m/resolve/main/config.json"]

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = files.get(self.path)
            known = any(path.startswith(self.path.partition("/resolve/")[0] + "/") for path in files)
            self.send_response(404 if body is None else 200)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET" and body is not None:
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf_home")


def load_in_child(home, *names: str, **environment: str) -> dict:
    inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        env=inherited | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_download_from_a_hub_then_offline_from_its_cache(model, hub, home):
    name, typo, bare, empty = "state-spaces/mamba-130m", "state-spaces/mamba-130", "mamba-1.4b", "someone/empty"
    results = load_in_child(home, name, typo, bare, empty, "no such name", HF_ENDPOINT=hub)
    assert results[name] == pytest.approx(model(torch.tensor([[1, 2, 3]])).logits.sum().item(), rel=1e-5)
    assert "did you mean state-spaces/mamba-130m?" in results[typo]
    assert "did you mean state-spaces/mamba-1.4b?" in results[bare]
    assert "it has no model.safetensors" in results[empty]
    assert "no such name" in results["no such name"]

    results = load_in_child(home, name, "state-spaces/mamba-370m", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert results[name] == pytest.approx(model(torch.tensor([[1, 2, 3]])).logits.sum().item(), rel=1e-5)
    assert "HF_HUB_OFFLINE" in results["state-spaces/mamba-370m"]

    results = load_in_child(home, name, HF_ENDPOINT="http://127.0.0.1:9")  # the cache serves without a network, too
    assert isinstance(results[name], float)


@pytest.mark.slow  # the hub's client tries for half a minute
def test_a_hub_out_of_reach(home):
    results = load_in_child(home, "state-spaces/mamba-790m", HF_ENDPOINT="http://127.0.0.1:9")
    assert "can't be reached" in results["state-spaces/mamba-790m"]


def test_a_file_or_an_empty_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        load_config_hf(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_config_hf(tmp_path)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_config_hf(tmp_path / "nowhere")


TRANSFORMERS = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "state_size": 8}


def test_transformers_config_is_read_in_our_words(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS | {"conv_kernel": 3, "use_bias": True, "expand": 3}))
    config = MambaConfig.from_dict(load_config_hf(tmp_path))
    assert (config.d_model, config.n_layer, config.padded_vocab_size) == (64, 2, 100)
    assert config.ssm_cfg == {
        "d_state": 8, "d_conv": 3, "expand": 3, "dt_rank": "auto", "conv_bias": True, "bias": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "falcon_mamba"}, "falcon_mamba"),
        ({"model_type": None}, "None"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon"),
    ],
)
def test_a_model_that_is_not_ours_is_refused(tmp_path, change, words):
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS | change))
    with pytest.raises(CheckpointError, match=words):
        load_config_hf(tmp_path)


def test_load_state_dict_converts_on_request(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert all(t.dtype == torch.float16 for t in load_state_dict_hf(tmp_path, dtype=torch.float16).values())
