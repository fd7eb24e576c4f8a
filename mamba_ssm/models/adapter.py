"""ESI's parameters in a folder of their own, for a checkpoint whose files stay as they are.

``esi.safetensors`` holds every tensor under ``esi.``; ``esi.json`` the sizes, and which checkpoint they belong to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mamba_ssm.errors import CheckpointError
from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.utils.hf import find_file, read_json, read_weights

if TYPE_CHECKING:
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

CONFIG_NAME, WEIGHTS_NAME = "esi.json", "esi.safetensors"
PREFIX = "esi."
SAMPLED = 4096  # numbers of each tensor that the fingerprint depends on: a checkpoint of any size takes no time


@dataclass(frozen=True)
class Adapter:
    """What the folder ``name`` holds: ESI's sizes and tensors, and the name and fingerprint of their checkpoint."""

    name: str
    esi: dict[str, Any]
    checkpoint: str
    fingerprint: str
    tensors: dict[str, Tensor]

    def onto(
        self, name: str | os.PathLike[str], weights: dict[str, Tensor], model: MambaLMHeadModel
    ) -> dict[str, Tensor]:
        """The weights of the checkpoint ``name`` with these tensors, for a model of these sizes of ESI.

        Raises CheckpointError where they were trained for other weights, or are not those that the model needs.
        """
        if fingerprint(weights) != self.fingerprint:
            raise CheckpointError(
                f"{self.name} was trained for {self.checkpoint}, whose weights are not those of {os.fspath(name)}: "
                "give that checkpoint, or train ESI for this one"
            )
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items() if key.startswith(PREFIX)}
        found = {key: tensor.shape for key, tensor in self.tensors.items()}
        if wrong := [key for key in shapes | found if shapes.get(key) != found.get(key)]:
            raise CheckpointError(
                f"{self.name}: {wrong[0]} of {WEIGHTS_NAME} does not fit {CONFIG_NAME}: "
                "one of the two files is another adapter's"
            )
        return {key: tensor for key, tensor in weights.items() if not key.startswith(PREFIX)} | self.tensors


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes and evenly spread numbers of a checkpoint's tensors in fp32, without ESI's."""
    digest = hashlib.sha256()
    for key in sorted(key for key in tensors if not key.startswith(PREFIX)):
        flat = tensors[key].detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{key} {tuple(tensors[key].shape)}".encode())
        digest.update(some.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(folder: str | os.PathLike[str]) -> Adapter:
    """Read the folder, or the hub's model of that name. Raises CheckpointError that says what is wrong."""
    path = find_file(folder, [CONFIG_NAME])
    about = read_json(path)
    try:
        esi, name, made_for = about["esi"], str(about["checkpoint"]), str(about["fingerprint"])
        sizes = asdict(ESIConfig.from_dict(esi))
    except (KeyError, TypeError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{path} does not describe ESI ({error}): copy it again, or train anew") from error
    tensors = read_weights(find_file(folder, [WEIGHTS_NAME]))
    return Adapter(os.fspath(folder), sizes, name, made_for, tensors)
