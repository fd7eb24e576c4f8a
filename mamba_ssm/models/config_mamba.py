"""The sizes of a Mamba language model, as config.json of a checkpoint holds them."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mamba_ssm.errors import CheckpointError, left_out
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.utils.hf import PUBLISHED, suggest

# Far above any model that exists, and low enough that a damaged or hostile config.json can't exhaust memory.
_LARGEST = {"d_model": 2**17, "n_layer": 4096, "vocab_size": 2**24, "pad_vocab_size_multiple": 2**16}
_LARGEST_SSM = {"d_state": 2**14, "d_conv": 64, "expand": 64, "dt_rank": 2**17}
_METADATA = {"architectures", "dtype", "model_type", "torch_dtype", "transformers_version"}


@dataclass
class MambaConfig:
    """The original's fields and defaults; ``esi`` configures embedding search and injection, None leaves it out."""

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
    esi: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MambaConfig:
        """Build from a parsed config.json. Raises ValueError that names the key at fault."""
        known = {f.name for f in fields(cls)}
        for key in ("d_model", "n_layer", "vocab_size"):
            if key not in values:
                raise ValueError(f"it lacks {key!r}, which every Mamba checkpoint has")
        if unknown := sorted(k for k in values if k not in known | _METADATA and not k.startswith("_")):
            raise ValueError(f"it asks for {', '.join(unknown)}, which this package does not know")
        config = cls(**{k: v for k, v in values.items() if k in known})
        config.validate()
        return config

    @classmethod
    def published(cls, name: str) -> MambaConfig:
        """The sizes of a published checkpoint, by its name with or without "state-spaces/". Nothing is downloaded."""
        sizes = PUBLISHED.get(name) or PUBLISHED.get(f"state-spaces/{name}")
        if sizes is None:
            raise CheckpointError(f"{name!r} is no published geometry: {suggest(name)}")
        return cls(d_model=sizes[0], n_layer=sizes[1])

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds. Without ESI it is the original's layout, which the original package reads."""
        return {k: v for k, v in asdict(self).items() if not (k == "esi" and v is None)}

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of pad_vocab_size_multiple."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    def validate(self) -> None:
        """Raise ValueError for a size out of range, a wrong type, or a part this package does not have."""
        for name, largest in _LARGEST.items():
            _check_size(name, getattr(self, name), largest)
        for name in ("rms_norm", "residual_in_fp32", "fused_add_norm", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name, kind in (("ssm_cfg", dict), ("attn_cfg", dict), ("attn_layer_idx", list), ("esi", dict | None)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} has the wrong type: {type(getattr(self, name)).__name__}")
        if self.d_intermediate != 0:
            raise ValueError(f"d_intermediate is {self.d_intermediate!r}, and {left_out('MLP layers')}")
        if self.attn_layer_idx:
            raise ValueError(f"attn_layer_idx is {self.attn_layer_idx}, and {left_out('attention layers')}")
        if (layer := self.ssm_cfg.get("layer", "Mamba1")) != "Mamba1":
            raise ValueError(f"ssm_cfg.layer is {layer!r}, and {left_out('all layers but Mamba1')}")
        options = set(inspect.signature(Mamba).parameters) - {"d_model", "layer_idx", "device", "dtype"} | {"layer"}
        if unknown := sorted(set(self.ssm_cfg) - options):
            raise ValueError(f"ssm_cfg has {', '.join(unknown)}, which the Mamba layer does not take")
        for name, largest in _LARGEST_SSM.items():
            value = self.ssm_cfg.get(name, 1)
            if not (name == "dt_rank" and value == "auto"):
                _check_size(f"ssm_cfg.{name}", value, largest, fractions=name == "expand")


def _check_size(name: str, value: object, largest: int, fractions: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float if fractions else int):
        raise ValueError(f"{name} must be a number of at least 1, not {value!r}")
    if not 0 < value <= largest:
        raise ValueError(f"{name} is {value}: it must lie between 1 and {largest}")
