"""Ask the example book its ten questions, and print what came of each as a table.

    python evals/examples.py

Found: one of the 8 passages holds an answer inside the gold passage. Contains: a right answer is part of what was said.
Writes evals/results/examples.json.
"""

from __future__ import annotations

import json
from typing import Any

from common import RESULTS, ROOT, mean, options, provenance, share, show, write

import mamba_ssm
from mamba_ssm.book import Answer, Engine
from mamba_ssm.text.normalise import normalise
from mamba_ssm.training.metrics import best_of, exact_match, f1

EXAMPLES = ROOT / "examples"
PASSAGES = 8


def gold_spans(example: dict[str, Any]) -> list[tuple[int, int]]:
    """Characters of the book at which the gold passage says a right answer; of the whole passage where it says none."""
    passage, start = example["passage"], example["start"]
    spans = [(start + at, start + at + len(a)) for a in example["answers"] if (at := passage.find(a)) >= 0]
    return spans or [(start, start + len(passage))]


def contains(said: str, truth: str) -> float:
    return float(f" {normalise(truth)} " in f" {normalise(said)} ")


def score(example: dict[str, Any], answer: Answer) -> dict[str, Any]:
    spans = gold_spans(example)
    ranks = (
        rank
        for rank, passage in enumerate(answer.evidence, 1)
        if any(passage.start <= first and last <= passage.end for first, last in spans)
    )
    metrics = (("exact_match", exact_match), ("f1", f1), ("contains", contains))
    return {
        "question": example["question"],
        "answers": example["answers"],
        "answer": answer.text,
        "confidence": round(answer.confidence, 4),
        "rank": next(ranks, None),
        **{name: round(best_of(metric, answer.text, example["answers"]), 4) for name, metric in metrics},
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| question | answer | right | F1 | found at |", "|---|---|---|---|---|"]
    for row in rows:
        right = "yes" if row["exact_match"] else "in it" if row["contains"] else "no"
        cells = (row["question"], row["answer"], right, f"{row['f1']:.2f}", str(row["rank"] or "–"))
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    arguments = options(__doc__ or "", n=10).parse_args()
    lines = (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines][: arguments.n]
    engine = Engine.load(arguments.model, arguments.device)
    with mamba_ssm.read(EXAMPLES / "abs-guide.md", model=engine, progress=False) as book:
        answers = book.ask_all([example["question"] for example in examples], passages=PASSAGES)
    rows = [score(*pair) for pair in zip(examples, answers, strict=True)]
    figures = {
        f"recall@{PASSAGES}": share([row["rank"] is not None for row in rows]),
        "exact_match": share([row["exact_match"] for row in rows]),
        "contains": share([row["contains"] for row in rows]),
        "f1": mean([row["f1"] for row in rows]),
    }
    write(arguments.out or RESULTS / "examples.json", provenance(arguments, engine) | {**figures, "questions": rows})
    print(table(rows))
    for name, value in figures.items():
        show(name, value)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
