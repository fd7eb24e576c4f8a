"""Train every mechanism on the same texts for as many steps, and measure them at several lengths.

    python evals/mechanisms/prepare.py && python evals/mechanisms/rank.py
    python evals/mechanisms/run.py [--arms plain esi ...] [--steps 400] [--seconds 380] [--device cuda] [--out FILE]
    python evals/mechanisms/table.py && python evals/mechanisms/plots.py

Each arm is trained at three learning rates with seed 0, and at the best of them with two more seeds; best is the least
cross-entropy of the answers in texts that are kept for development. Ablations are trained with seed 0 at the best rate
of the arm `esi`. Every run is a line of evals/results/mechanisms.jsonl as soon as it is done, and one that stands there
is not made again, so a run can be broken off and taken up, and several processes can share the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, ROOT, provenance
from mechanisms.ablations import ABLATIONS
from mechanisms.arms import ARMS
from mechanisms.measure import development_loss, measure
from mechanisms.texts import DEVELOPMENT, TRAINING, Texts, load, training_batches

from mamba_ssm.training.loop import train

RATES = (1e-3, 2e-3, 4e-3)
SEEDS = 3
RECIPE = ("steps", "texts", "per_text")
OUT = RESULTS / "mechanisms.jsonl"

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, record: Record) -> None:
    """In one system call, so that neither another process nor an end of this one can tear a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(record) + "\n").encode())
    finally:
        os.close(file)


def best_rate(records: Sequence[Record], arm: str) -> float:
    """The rate of the arm's least loss in development with seed 0. SystemExit where its sweep is not complete."""
    losses = {r["rate"]: r["development_loss"] for r in records if r["arm"] == arm and r["seed"] == 0}
    if missing := sorted(set(RATES) - set(losses)):
        raise SystemExit(f"the learning rate is that of {arm}, whose runs at {missing} are not there: run it first")
    return min(RATES, key=losses.__getitem__)


def to_do(arm: str, out: Path) -> Iterator[tuple[float, int]]:
    """The rates and seeds of an arm's runs; those that follow from results look at them when their turn comes."""
    if arm in ABLATIONS:
        yield best_rate(read_records(out), "esi"), 0
        return
    for rate in RATES:
        yield rate, 0
    for seed in range(1, SEEDS):
        yield best_rate(read_records(out), arm), seed


def run(
    arm: str, rate: float, seed: int, sets: dict[str, Texts], borrowed: dict[str, Tensor], arguments: Any
) -> Record:
    started, device = time.perf_counter(), torch.device(arguments.device)
    torch.manual_seed(seed)
    made = (ARMS | ABLATIONS)[arm](borrowed).to(device)
    rng = np.random.default_rng(seed)
    batches = training_batches([sets[kind] for kind in TRAINING], arguments.texts, arguments.per_text, rng)
    log: list[str] = []
    steps = arguments.steps
    train(
        made,
        lambda _: made.losses(next(batches)),
        steps,
        rate,
        warmup=max(1, steps // 10),
        slow=made.slow,
        log=log.append,
    )
    trained = time.perf_counter()
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    loss = development_loss(made, sets[DEVELOPMENT], half)
    rows = measure(made, sets, half, in_use=arm == "esi")
    done = time.perf_counter()
    return {
        "arm": arm,
        "rate": rate,
        "seed": seed,
        "parameters": sum(p.numel() for p in made.parameters()),
        "development_loss": loss,
        "seconds": {"training": trained - started, "measuring": done - trained},
        "log": log,
        "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*ARMS, *ABLATIONS]
    parser.add_argument("--arms", nargs="+", choices=every, default=every, metavar="ARM", help=", ".join(every))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--texts", type=int, default=12, help="in a batch, half of them articles")
    parser.add_argument("--per-text", type=int, default=8, help="questions about each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these no run is begun")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "mechanisms.safetensors")
    parser.add_argument("--rankings", type=Path, default=ROOT / "data" / "mechanisms_rankings.safetensors")
    parser.add_argument("--table", type=Path, default=ROOT / "data" / "token_table.safetensors")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    recipe = {name: getattr(arguments, name) for name in RECIPE}
    if any(record["recipe"] != recipe for record in read_records(arguments.out)):
        raise SystemExit(f"{arguments.out} has runs of another recipe than {recipe}: choose another --out")
    sets, borrowed = load(arguments.data, arguments.device, arguments.rankings), load_file(arguments.table)
    for arm in arguments.arms:
        for rate, seed in to_do(arm, arguments.out):
            done = {(r["arm"], r["rate"], r["seed"]) for r in read_records(arguments.out)}
            if (arm, rate, seed) in done:
                continue
            if time.perf_counter() - started > arguments.seconds:
                print("no time is left", flush=True)
                return 1
            record = run(arm, rate, seed, sets, borrowed, arguments)
            if torch.device(arguments.device).type == "cuda":
                torch.cuda.empty_cache()  # other processes may share the card
            append(arguments.out, record | {"recipe": recipe, "provenance": provenance(arguments)})
            scores = {test: part["right"].count("1") / len(part["right"]) for test, part in record["rows"][""].items()}
            print(arm, rate, seed, f"loss {record['development_loss']:.3f}", scores, record["seconds"], flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
