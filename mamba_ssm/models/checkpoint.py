"""Checkpoints of MambaLMHeadModel: what is in the files against what the model needs, and back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mamba_ssm.errors import CheckpointError
from mamba_ssm.models import adapter
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.modules.int8_linear import Int8Linear
from mamba_ssm.utils.hf import CONFIG_NAME, SAFE_WEIGHTS_NAME, load_config_hf, load_state_dict_hf

if TYPE_CHECKING:
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

_HEAD, _EMBEDDING = "lm_head.weight", "backbone.embedding.weight"


class _NoDraws(TorchFunctionMode):
    """Draw no numbers for a model on the meta device: to compute them there PyTorch imports its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def load(
    model_cls: type[MambaLMHeadModel],
    name: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    esi: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> MambaLMHeadModel:
    """See MambaLMHeadModel.from_pretrained. Nothing is allocated before config and weights are known to agree."""
    config = load_config(name)
    with _NoDraws():
        model = model_cls(config, device="meta", dtype=dtype, **kwargs)
        weights = load_weights(name, model)
        if esi is not None:
            added = adapter.load(esi)
            model = model_cls(replace(config, esi=added.esi), device="meta", dtype=dtype, **kwargs)
            weights = added.onto(name, weights, model)
    wanted = model.state_dict()
    device = torch.get_default_device() if device is None else torch.device(device)
    # Copies, for a view of the file would change, or crash, with the file. A_log and D stay in fp32 (see Mamba).
    ready = {k: v.to(device, wanted[k].dtype, copy=True) for k, v in weights.items()}
    # Real memory for what a checkpoint from before ESI lacks, and for buffers that no checkpoint holds.
    model.esi = model.new_esi(device, dtype)
    model.load_state_dict(ready, strict=False, assign=True)
    model.tie_weights()
    model.checkpoint, model.adapter = os.fspath(name), None if esi is None else os.fspath(esi)
    return model.eval()


def load_config(name: str | os.PathLike[str]) -> MambaConfig:
    """config.json of either layout. Raises CheckpointError that says what is wrong with it."""
    try:
        return MambaConfig.from_dict(load_config_hf(name))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{CONFIG_NAME} of {name} is not a Mamba model's: {error}") from error


def load_weights(name: str | os.PathLike[str], model: MambaLMHeadModel) -> dict[str, Tensor]:
    """The tensors as they are in the files, by the original's keys; they fit the model. A tied head is left out."""
    weights, config = load_state_dict_hf(name), model.config
    if config.tie_embeddings:
        head = weights.pop(_HEAD, None)
        if _EMBEDDING not in weights and head is not None:
            weights[_EMBEDDING] = head
        elif head is not None and not torch.equal(head, weights[_EMBEDDING]):
            raise CheckpointError(
                f"{name}: {_HEAD} differs from {_EMBEDDING}; set tie_embeddings to false in {CONFIG_NAME} to use both"
            )
    wanted = {key: value for key, value in model.state_dict().items() if not (config.tie_embeddings and key == _HEAD)}
    _check(name, weights, wanted)
    return weights


def _check(name: str | os.PathLike[str], weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise CheckpointError for a missing, unexpected or wrongly shaped tensor. ESI's may be missing."""
    if missing := [key for key in wanted if key not in weights and not key.startswith("esi.")]:
        raise CheckpointError(f"{name} lacks {_some(missing)}: its weights or its {CONFIG_NAME} are another model's")
    if unexpected := [key for key in weights if key not in wanted]:
        raise CheckpointError(f"{name} holds {_some(unexpected)}, which a model of its {CONFIG_NAME} does not have")
    for key, tensor in weights.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{name}: {key} has shape {tuple(tensor.shape)} and {CONFIG_NAME} asks for {tuple(wanted[key].shape)}: "
                "one of the two files is another model's"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name}: {key} holds {tensor.dtype}, not floating-point numbers")


def _some(keys: list[str]) -> str:
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + rest


def save(model: nn.Module, config: dict[str, Any], folder: str | os.PathLike[str]) -> None:
    """See MambaLMHeadModel.save_pretrained."""
    write(tensors_of(model, config.get("tie_embeddings", False)), config, folder)


def save_esi(model: MambaLMHeadModel, folder: str | os.PathLike[str]) -> None:
    """See MambaLMHeadModel.save_esi."""
    if model.esi is None:
        raise CheckpointError("there is no ESI to save: the model has none")
    tensors = tensors_of(model, model.config.tie_embeddings)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise CheckpointError("ESI is saved from a model in fp32, as it was trained: load it without a dtype")
    name = Path(model.checkpoint or "a model that was not loaded")
    about = {
        "checkpoint": name.resolve().name if name.is_dir() else str(name),  # of a folder, not where it lies
        "fingerprint": adapter.fingerprint(tensors),
        "esi": asdict(model.esi.config),
    }
    esi = {key: tensor for key, tensor in tensors.items() if key.startswith(adapter.PREFIX)}
    write(esi, about, folder, adapter.WEIGHTS_NAME, adapter.CONFIG_NAME)


def tensors_of(model: nn.Module, tied: bool) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: a head that is ``tied`` to the embedding is stored once."""
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise CheckpointError("weights in int8 are for decoding alone: save the model before to_int8()")
    return {k: v.detach() for k, v in model.state_dict().items() if not (tied and k == _HEAD)}


def write(
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    folder: str | os.PathLike[str],
    weights_name: str = SAFE_WEIGHTS_NAME,
    config_name: str = CONFIG_NAME,
) -> None:
    """Write weights and config, by their names. The weights are renamed into place before the config is."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    partial_weights = folder / f".{weights_name}.{os.getpid()}.part"
    partial_config = folder / f".{config_name}.{os.getpid()}.part"
    try:
        save_file(tensors, partial_weights, metadata={"format": "pt"})
        partial_config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        partial_weights.replace(folder / weights_name)
        partial_config.replace(folder / config_name)
    finally:
        partial_weights.unlink(missing_ok=True)
        partial_config.unlink(missing_ok=True)
