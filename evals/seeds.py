"""The default model beside two more that the same script trained with other seeds, as a table in Markdown.

    python evals/seeds.py

Reads what the other scripts wrote, in evals/results/seeds with the seed after the name; the default model is seed 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from common import RESULTS

SEEDS = (0, 1, 2)
LENGTHS = (65_536, 262_144, 1_048_576)
METRICS = (("accuracy", "exactly right", LENGTHS), ("string_match", "as RULER counts", LENGTHS[-1:]))


class Row(NamedTuple):
    """What was measured, for each of SEEDS, and the peer's figure for the same questions."""

    name: str
    values: list[float]
    peer: float | None = None

    def __str__(self) -> str:
        cells = [self.name, *(f"{value:.3f}" for value in (*self.values, sum(self.values) / len(self.values)))]
        return f"| {' | '.join([*cells, '' if self.peer is None else f'{self.peer:.3f}'])} |"


def results(name: str) -> list[dict[str, Any]]:
    return [result(name, seed) for seed in SEEDS]


def result(name: str, seed: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((RESULTS / "seeds" / f"{name}_{seed}.json").read_text(encoding="utf-8"))
    return value


def squad() -> Iterator[Row]:
    runs = [each["books"] for each in results("squad")]
    for book, first in runs[0].items():
        for k in ("@1", "@8"):
            values = [run[book]["recall"][k]["value"] for run in runs]
            yield Row(f"SQuAD dev, {book}: recall{k}", values, first["bm25_recall"][k]["value"])
        for metric, said in (("exact_match", "exact match"), ("f1", "F1")):
            yield Row(f"SQuAD dev, {book}: {said}", [run[book][metric]["value"] for run in runs])


def textbooks() -> Iterator[Row]:
    runs = [each["books"] for each in results("textbooks")]
    for book, first in runs[0].items():
        values = [run[book]["recall"]["@8"]["value"] for run in runs]
        yield Row(f"{book}: recall@8", values, first["bm25_recall"]["@8"]["value"])


def recall() -> Iterator[Row]:
    rows = [each["rows"] for each in results("recall")]
    rows[0] += result("recall_chapters", 0)["rows"]  # which had a run of their own
    runs = [{(row["task"], row["length"]): row for row in each} for each in rows]
    for task in dict.fromkeys(task for task, _ in runs[0]):
        for metric, said, lengths in METRICS:
            for length in lengths:
                yield Row(f"{task}, {length:,} tokens, {said}", [run[task, length][metric]["value"] for run in runs])


def main() -> None:
    print("| what | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean | BM25 |")
    print("|---" * (len(SEEDS) + 3) + "|")
    for rows in (squad(), textbooks(), recall()):
        for row in rows:
            print(row)


if __name__ == "__main__":
    main()
