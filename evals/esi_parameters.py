"""How many parameters embedding search and injection add to each published Mamba checkpoint.

    python evals/esi_parameters.py

Models are built on PyTorch's meta device, which holds no numbers: nothing is downloaded and little memory is needed.
Writes evals/results/esi_parameters.json and prints a table.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, write

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.hf import PUBLISHED


def count(name: str) -> dict[str, Any]:
    """Parameters of a published geometry; the head shares the embedding's and is counted once."""
    config = replace(MambaConfig.published(name), esi={})
    model = MambaLMHeadModel(config, device="meta")
    assert model.esi is not None
    parts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.esi.named_children()}
    added = sum(parts.values())
    total = sum(p.numel() for p in model.parameters())
    return {
        "checkpoint": name,
        "d_model": config.d_model,
        "n_layer": config.n_layer,
        "parameters": total - added,
        "esi_parameters": added,
        "esi_parts": parts,
        "share_of_model": added / total,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "esi_parameters.json")
    arguments = parser.parse_args()
    rows = [count(name.removeprefix("state-spaces/")) for name in PUBLISHED]
    write(arguments.out, {**provenance(arguments), "esi": asdict(ESIConfig()), "checkpoints": rows})
    print("| checkpoint | parameters | ESI adds | share of the whole |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['checkpoint']} | {row['parameters']:,} | {row['esi_parameters']:,} | {row['share_of_model']:.2%} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
