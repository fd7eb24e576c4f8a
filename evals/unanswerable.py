"""Does the confidence of an answer, or the score of its best passage, tell that a book holds none?

    python evals/unanswerable.py [--n 400]

Each question of SQuAD's development articles is asked of a book of its own article, and of another article, which
cannot answer it. Reported are the area under the curve, and for some thresholds the shares of both kinds below them.
Fetch the data with `python scripts/fetch_data.py`. Writes evals/results/unanswerable.json.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, book_of, options, provenance, write
from squad import Asked, load_split, quality, questions_of

from mamba_ssm.book import Engine
from mamba_ssm.training.squad import article_text

AWAY = 7  # articles from a question's own to the one that cannot answer it
SHARES = (0.02, 0.05, 0.1, 0.2)  # of answerable questions below a threshold


def ask(engine: Engine, text: str, asked: Sequence[Asked]) -> list[tuple[float, float, float]]:
    """Confidence, the best passage's score and exact match for each question."""
    if not asked:
        return []
    with book_of(engine, text) as book:
        answers = book.ask_all([question.text for question in asked])
    return [
        (answer.confidence, answer.evidence[0].score, quality(answer.text, question)["em"])
        for answer, question in zip(answers, asked, strict=True)
    ]


def compare(own: np.ndarray, other: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """How well a number tells answerable questions (Q,), ``right`` where answered, from others (R,)."""
    wins = (own[:, None] > other).mean() + (own[:, None] == other).mean() / 2
    thresholds = []
    for value in np.quantile(own, SHARES):
        below = own < value
        thresholds.append(
            {
                "threshold": float(value),
                "answerable_below": float(below.mean()),
                "of_these_right": float(right[below].mean()) if below.any() else None,
                "unanswerable_below": float((other < value).mean()),
            }
        )
    return {"area_under_curve": float(wins), "thresholds": thresholds}


def main() -> int:
    parser = options(__doc__ or "", n=400)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "squad", help="where SQuAD lies")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / "unanswerable.json"
    engine = Engine.load(arguments.model, arguments.device)
    articles = load_split("development", arguments.data)
    everything = list(questions_of(articles))
    asked = random.Random(arguments.seed).sample(everything, min(arguments.n, len(everything)))
    own: list[tuple[float, float, float]] = []
    other: list[tuple[float, float, float]] = []
    for number, article in enumerate(articles):
        text, _ = article_text(article)
        own += ask(engine, text, [q for q in asked if q.article == number])
        other += ask(engine, text, [q for q in asked if (q.article + AWAY) % len(articles) == number])
    sure, best, right = np.array(own).T
    result = provenance(arguments, engine) | {
        "questions": len(own),
        "confidence": compare(sure, np.array(other)[:, 0], right),
        "best_score": compare(best, np.array(other)[:, 1], right),
    }
    write(out, result)
    for name in ("confidence", "best_score"):
        print(f"{name}: area under the curve {result[name]['area_under_curve']:.3f}")
        for row in result[name]["thresholds"]:
            print("  " + ", ".join(f"{key} {value:.3f}" for key, value in row.items() if value is not None))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
