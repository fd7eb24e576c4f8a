"""Fit how a probability becomes a confidence, on answers to the development articles, and write it into the model.

    python evals/squad.py --split development --no-plain && python evals/unanswerable.py
    cd evals/results
    python ../../scripts/calibrate.py ../../mamba_ssm/weights/default squad_development.jsonl unanswerable.json

Platt scaling: confidence = sigmoid(offset + slope * logit(probability)), by maximum likelihood of which answers are
right. A question of these articles has one right answer, and SQuAD's own annotators word one alike only in 77 of 100
(Rajpurkar et al. 2016, arXiv 1606.05250): right is what has an F1 of two thirds. And the score of the best passage
below which a book does not seem to tell: that of 5% of the questions that have an answer. esi.reader.calibration and
esi.reader.least_score are all that changes in the folder.
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

ANSWERABLE_BELOW = 0.05
RIGHT = 2 / 3


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


def write(folder: Path, new: dict[str, Tensor]) -> None:
    """Into the file that holds the reader's other parameters, and the index."""
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name = index["weight_map"]["esi.reader.no_answer"]
    tensors = load_file(folder / name) | {key: value.half() for key, value in new.items()}
    index["weight_map"] |= dict.fromkeys(new, name)
    partial, partial_index = folder / f".{name}.part", folder / ".index.part"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial_index.write_text(json.dumps(index, indent=1) + "\n")
    os.replace(partial, folder / name)
    os.replace(partial_index, index_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("answers", type=Path, help="what evals/squad.py wrote: never of the split that reports")
    parser.add_argument("unanswerable", type=Path, help="what evals/unanswerable.py wrote")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.answers.read_text(encoding="utf-8").splitlines()]
    confidence = torch.tensor([row["confidence"] for row in rows], dtype=torch.float64)
    right = torch.tensor([row["f1"] >= RIGHT for row in rows], dtype=torch.float64)
    esi = MambaLMHeadModel.from_pretrained(args.model).esi
    assert esi is not None
    offset, slope = esi.reader.calibration.double()
    logits = (confidence.logit(eps=1e-4) - offset) / slope  # of the probabilities, whatever the model made of them
    numbers = fit(logits, right)
    after = torch.sigmoid(numbers[0] + numbers[1] * logits)
    errors = [calibration_error(c.tolist(), right.tolist()) for c in (confidence, after)]
    print(f"offset and slope {numbers.tolist()}: calibration error {errors[0]:.4f} before, {errors[1]:.4f} after")
    thresholds = json.loads(args.unanswerable.read_text(encoding="utf-8"))["best_score"]["thresholds"]
    least = next(row["threshold"] for row in thresholds if round(row["answerable_below"], 2) == ANSWERABLE_BELOW)
    print(f"a book does not seem to tell where the best passage scores below {least:.2f}")
    write(args.model, {"esi.reader.calibration": numbers, "esi.reader.least_score": torch.tensor(least)})


if __name__ == "__main__":
    main()
