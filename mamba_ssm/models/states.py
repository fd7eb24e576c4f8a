"""What a model remembers of a text, on disk: to go on from there in another process, or another day.

A safetensors file with the tensors "I.conv" and "I.ssm" of each layer I, and in its metadata the model's config and the
dtype of its weights. Nothing in a file is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mamba_ssm.errors import CheckpointError
from mamba_ssm.modules.mamba_simple import MambaState

if TYPE_CHECKING:
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

_PARTS = ("conv", "ssm")


def save(model: MambaLMHeadModel, states: Sequence[MambaState], path: str | os.PathLike[str]) -> None:
    """See MambaLMHeadModel.save_states."""
    from safetensors.torch import save_file

    path = Path(path)
    tensors = {
        f"{index}.{part}": tensor.detach().contiguous()
        for index, state in enumerate(states)
        for part, tensor in zip(_PARTS, state, strict=True)
    }
    _check(path, tensors, model)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, partial, metadata={"config": json.dumps(_config(model)), "dtype": _dtype(model)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(model: MambaLMHeadModel, path: str | os.PathLike[str]) -> list[MambaState]:
    """See MambaLMHeadModel.load_states."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"there is no file {path}: give one that save_states wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies, for a state is updated in place, and a view of the file would change with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        config = json.loads(metadata.get("config", "null"))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or no file of states ({error}): save the states again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no states of a model: give a file that save_states wrote")
    here = _config(model)
    if other := sorted(key for key in config.keys() | here.keys() if config.get(key) != here.get(key)):
        raise CheckpointError(f"{path} holds states of another model, with another {', '.join(other)}: load that model")
    if (dtype := metadata.get("dtype")) != _dtype(model):
        raise CheckpointError(f"{path} holds states of a model in {dtype}: load the model with that dtype")
    _check(path, tensors, model)
    device = model.lm_head.weight.device
    return [
        (tensors[f"{index}.conv"].to(device), tensors[f"{index}.ssm"].to(device))
        for index in range(model.config.n_layer)
    ]


def _config(model: MambaLMHeadModel) -> dict[str, Any]:
    """As JSON gives it back. What ESI adds has no part in the states."""
    return json.loads(json.dumps({key: value for key, value in model.config.to_dict().items() if key != "esi"}))


def _dtype(model: MambaLMHeadModel) -> str:
    return str(model.lm_head.weight.dtype).removeprefix("torch.")


def _check(path: str | os.PathLike[str], tensors: dict[str, Tensor], model: MambaLMHeadModel) -> None:
    """Raise CheckpointError unless these are the states of the model for some number of rows."""
    rows = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
    wanted = {
        f"{index}.{part}": tensor.shape
        for index, state in model.allocate_inference_cache(rows, 0).items()
        for part, tensor in zip(_PARTS, state, strict=True)
    }
    if tensors.keys() != wanted.keys():
        layers = model.config.n_layer
        raise CheckpointError(f"{path}: there are {len(tensors)} tensors, and {layers} layers need two each")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name]:
            shapes = f"{tuple(tensor.shape)}, and the model's is {tuple(wanted[name])}"
            raise CheckpointError(f"{path}: the state {name} has the shape {shapes}: it is another model's or batch's")
        if not tensor.is_floating_point() or (
            name.endswith("ssm") and tensor.dtype not in (torch.float32, torch.float64)
        ):
            raise CheckpointError(f"{path}: the state {name} is in {tensor.dtype}: it must be as the model returned it")
