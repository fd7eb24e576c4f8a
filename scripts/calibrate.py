"""Fit how a probability becomes a confidence, on answers to the development articles, and write it into the model.

    python evals/squad.py --split development --no-plain
    python scripts/calibrate.py mamba_ssm/weights/default evals/results/squad_development.jsonl

Platt scaling: confidence = sigmoid(offset + slope * logit(probability)), by maximum likelihood of which answers match
exactly. Two numbers, esi.reader.calibration, are all that changes in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.metrics import calibration_error

KEY = "esi.reader.calibration"


def fit(logits: Tensor, right: Tensor) -> Tensor:
    """Offset and slope (2,) for logits (Q,) of which ``right`` (Q,), 0 or 1, were right."""
    numbers = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(numbers[0] + numbers[1] * logits, right)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return numbers.detach()


def write(folder: Path, numbers: Tensor) -> None:
    """Into the file that holds the reader's other parameters, and the index."""
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name = index["weight_map"]["esi.reader.no_answer"]
    tensors = load_file(folder / name) | {KEY: numbers.half()}
    index["weight_map"][KEY] = name
    partial, partial_index = folder / f".{name}.part", folder / ".index.part"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial_index.write_text(json.dumps(index, indent=1) + "\n")
    os.replace(partial, folder / name)
    os.replace(partial_index, index_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("answers", type=Path, help="what evals/squad.py wrote: never of the split that reports")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.answers.read_text(encoding="utf-8").splitlines()]
    confidence = torch.tensor([row["confidence"] for row in rows], dtype=torch.float64)
    right = torch.tensor([row["em"] for row in rows], dtype=torch.float64)
    esi = MambaLMHeadModel.from_pretrained(args.model).esi
    assert esi is not None
    offset, slope = esi.reader.calibration.double()
    logits = (confidence.logit(eps=1e-4) - offset) / slope  # of the probabilities, whatever the model made of them
    numbers = fit(logits, right)
    after = torch.sigmoid(numbers[0] + numbers[1] * logits)
    errors = [calibration_error(c.tolist(), right.tolist()) for c in (confidence, after)]
    print(f"offset and slope {numbers.tolist()}: calibration error {errors[0]:.4f} before, {errors[1]:.4f} after")
    write(args.model, numbers)


if __name__ == "__main__":
    main()
