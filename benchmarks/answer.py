"""Seconds that a question on a book that was read takes, from the call to the answer.

    python benchmarks/answer.py [--rounds 5] [--threads 2]

The ten questions of the example book, each asked of it ``rounds`` times after once to load what is loaded once. Search
and answer are the parts that the answer itself tells of; the rest is the reading of the saved book.
Writes benchmarks/results/answer_cpu.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "evals"))

from common import ROOT, options, provenance, write

import mamba_ssm
from mamba_ssm.book import Engine

EXAMPLES = ROOT / "examples"
TARGET = 0.3


def main() -> None:
    parser = options(__doc__ or "", n=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = Engine.load(arguments.model, arguments.device)
    lines = (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines][: arguments.n]
    times: dict[str, list[float]] = {"total": [], "search": [], "answer": []}
    with mamba_ssm.read(EXAMPLES / "abs-guide.md", model=engine, progress=False) as book:
        for question in questions:
            book.ask(question)
        for question in questions * arguments.rounds:
            started = time.perf_counter()
            answer = book.ask(question)
            times["total"].append(time.perf_counter() - started)
            times["search"].append(answer.seconds.search)
            times["answer"].append(answer.seconds.answer)
        assert book.info is not None
        tokens = book.info.tokens
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    result = provenance(arguments, engine) | {"tokens": tokens, "target": TARGET, "quartiles": quartiles}
    write(arguments.out or ROOT / "benchmarks" / "results" / "answer_cpu.json", result)
    for name, (low, middle, high) in quartiles.items():
        print(f"{name:7} median {middle:.3f} s, half of them within {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
