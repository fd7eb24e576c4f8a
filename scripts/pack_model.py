"""Pack a trained model for shipping: its token table in 8 bits with a scale a row, the rest in 16; no file over 15 MB.

python scripts/pack_model.py data/run/model mamba_ssm/weights/default
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

TABLE = "backbone.embedding.weight"


def int8_rows(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """A matrix (R, C) as NAME.int8 (R, C) and NAME.scale (R, 1), as checkpoints in 8 bits hold it."""
    scale = matrix.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return {f"{name}.int8": (matrix / scale).round().to(torch.int8), f"{name}.scale": scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = MambaLMHeadModel.from_pretrained(args.model)
    weights = {k: v.detach() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    table = weights.pop(TABLE)
    shards = {
        "model-00001-of-00002.safetensors": int8_rows(TABLE, table),
        "model-00002-of-00002.safetensors": {k: v.half().contiguous() for k, v in weights.items()},
    }
    for name, tensors in shards.items():
        save_file(tensors, args.out / name, metadata={"format": "pt"})
        print(name, (args.out / name).stat().st_size)
    where = {key: name for name, tensors in shards.items() for key in tensors}
    index = {"metadata": {}, "weight_map": where}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (args.out / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")


if __name__ == "__main__":
    main()
