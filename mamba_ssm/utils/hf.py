"""The files of a checkpoint, from a local folder or the Hugging Face hub, as this package names things.

The hub's own settings hold: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME, HF_TOKEN.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_ssm.errors import CheckpointError

CONFIG_NAME = "config.json"
SAFE_WEIGHTS_NAME = "model.safetensors"
WEIGHTS_NAME = "pytorch_model.bin"
_WEIGHT_FILES = (SAFE_WEIGHTS_NAME, f"{SAFE_WEIGHTS_NAME}.index.json", WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json")

PUBLISHED = {  # d_model, n_layer; all else is the default of MambaConfig
    "state-spaces/mamba-130m": (768, 24),
    "state-spaces/mamba-370m": (1024, 48),
    "state-spaces/mamba-790m": (1536, 48),
    "state-spaces/mamba-1.4b": (2048, 48),
    "state-spaces/mamba-2.8b": (2560, 64),
    "state-spaces/mamba-2.8b-slimpj": (2560, 64),
}


def load_config_hf(model_name: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a hub name or folder, in the original's layout whichever it was written in."""
    path = find_file(model_name, [CONFIG_NAME])
    config = read_json(path)
    return _config_from_transformers(config, path) if is_transformers(config) else config


def load_raw_config(model_name: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a hub name or folder as it stands there."""
    return read_json(find_file(model_name, [CONFIG_NAME]))


def load_state_dict_hf(
    model_name: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The tensors of a hub name or folder, by the original's keys. Without device and dtype they may map the file."""
    path = find_file(model_name, _WEIGHT_FILES)
    files = _shards(model_name, path) if path.suffix == ".json" else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_weights(file))
    tensors = dequantise(tensors, path)
    if "backbone.embeddings.weight" in tensors:  # the one key that transformers names differently
        tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    return {k: v.to(device=device, dtype=dtype if v.is_floating_point() else None) for k, v in tensors.items()}


def find_file(model_name: str | os.PathLike[str], names: Iterable[str]) -> Path:
    """The first of the files that the folder or the hub has."""
    name = os.fspath(model_name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        for file in names:
            if (folder / file).is_file():
                return folder / file
        raise CheckpointError(f"the folder {name} is no checkpoint: it has no {' or '.join(names)}")
    if folder.exists():
        raise CheckpointError(f"{name} is a file: give the folder that holds it, with its {CONFIG_NAME}")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"there is no folder {name}: check the path, or give a name on the hub")
    return _download(name, names)


def _download(name: str, names: Iterable[str]) -> Path:
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    def not_cached(file: str) -> bool:
        return not isinstance(try_to_load_from_cache(name, file), str)

    unreachable = None
    names = list(names)
    with suppress(errors.HFValidationError):  # reported below
        names.sort(key=not_cached)  # without a network, the hub's client waits long for each file that it lacks
    for file in names:
        try:
            return Path(hf_hub_download(name, file))
        except errors.LocalEntryNotFoundError as error:
            unreachable = error
        except errors.EntryNotFoundError:
            continue
        except errors.GatedRepoError as error:
            raise CheckpointError(f"{name} is gated: accept its terms on the hub, then `hf auth login`") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise CheckpointError(f"no folder and no model on the hub is called {name!r}: {suggest(name)}") from error
        except (errors.HfHubHTTPError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"could not download {file} of {name}: {reason}; try again later") from error
    if unreachable is not None:
        raise CheckpointError(
            f"{name} is no folder, is not in the hub's local cache, and the hub can't be reached (or HF_HUB_OFFLINE is "
            f"set): connect, or give a folder; {suggest(name)}"
        ) from unreachable
    raise CheckpointError(f"{name} on the hub is no checkpoint: it has no {' or '.join(names)}")


def push_folder(
    folder: Path, repo_id: str, private: bool | None, token: str | None, commit_message: str, revision: str | None
) -> str:
    """Commit the files of ``folder`` to a model of the hub, made where there is none: the commit's address."""
    from huggingface_hub import HfApi, errors

    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id, folder_path=folder, commit_message=commit_message, revision=revision
        )
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # the second also of no connection at all
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"could not upload to {repo_id}: {reason}; give a name that you may write, and `hf auth login` or token="
        ) from error
    return str(commit.commit_url)


def suggest(name: str) -> str:
    """The published name that is nearest, or all."""
    tails = {published.partition("/")[2]: published for published in PUBLISHED}
    close = difflib.get_close_matches(name.rpartition("/")[2].lower(), tails, n=1)
    return f"did you mean {tails[close[0]]}?" if close else f"published are {', '.join(PUBLISHED)}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): download or write it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object: download or write it again")
    return value


def _shards(model_name: str | os.PathLike[str], index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    names = sorted({str(file) for file in weight_map.values()})
    for name in names:
        # An index comes from anywhere: it may name files of its own folder only.
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index} names {name!r}, which is no weight file of its folder: do not trust it")
    return [find_file(model_name, [name]) for name in names]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one .safetensors or .bin file. Nothing in a file is ever run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Only the zip format, the default for years, can be mapped rather than read.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is damaged or holds more than tensors: get it again, as safetensors") from error
    except Exception as error:  # safetensors, zip and pickle readers share no class for a damaged file
        raise CheckpointError(f"{path} is damaged ({str(error).partition(chr(10))[0]}): download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise CheckpointError(f"{path} is not a table of tensors: save model.state_dict() alone")
    return tensors


def dequantise(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """NAME.int8 (rows, columns) times NAME.scale (rows, 1) is NAME: how the model that this package ships is packed."""
    packed = [key.removesuffix(".int8") for key in tensors if key.endswith(".int8")]
    for name in packed:
        values, scale = tensors.pop(f"{name}.int8"), tensors.pop(f"{name}.scale", None)
        if scale is None or scale.shape != (*values.shape[:1], 1) or values.dtype != torch.int8:
            raise CheckpointError(f"{path}: {name}.int8 has no fitting {name}.scale: download it again")
        tensors[name] = values.float() * scale.float()
    return tensors


def is_transformers(config: dict[str, Any]) -> bool:
    """Whether a config.json is in transformers' layout, also where the original's keys stand beside."""
    return "hidden_size" in config


def _config_from_transformers(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """transformers' MambaConfig -> the original's. What its default is need not be in the file."""
    if (kind := config.get("model_type")) != "mamba":
        raise CheckpointError(f"{path} describes a model of type {kind!r}: this package runs Mamba models only")
    for key, only in (("hidden_act", "silu"), ("layer_norm_epsilon", 1e-5)):
        if (value := config.get(key, only)) != only:
            raise CheckpointError(f"{path}: {key} is {value!r}, and this package has {only!r} only")
    ssm = {
        "d_state": config.get("state_size", 16),
        "d_conv": config.get("conv_kernel", 4),
        "expand": config.get("expand", 2),
        "dt_rank": config.get("time_step_rank", "auto"),
        "conv_bias": config.get("use_conv_bias", True),
        "bias": config.get("use_bias", False),
    }
    return {
        "d_model": config["hidden_size"],
        "n_layer": config.get("num_hidden_layers", 32),
        "vocab_size": config.get("vocab_size", 50280),
        "ssm_cfg": ssm,
        "rms_norm": True,
        "residual_in_fp32": config.get("residual_in_fp32", True),
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,  # transformers counts the padding in
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }
