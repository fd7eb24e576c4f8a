"""Follow-up questions: what to do with the question before, and when.

    python scripts/fetch_data.py --held-out
    python evals/follow_ups.py

Follow-ups: 24 pairs over the example book, in evals/questions/follow_ups.jsonl, written before anything was tried. Each
second question is asked alone; with the first one in the search (what `Conversation` does); with the first one and its
answer in the search; and with the first one both searched and read, as one question.
Stand-alone: questions of held-out books (evals/textbooks.py), the first of SciQ's, each after the one before it in its
file. A rule that takes them for follow-ups costs them something, and that is measured. The rule was written with the
pairs, the handbook's and the Rust book's in sight, not the FAQ's and SciQ's.
`rule` is what `mamba_ssm.book.conversation.leaves_out` makes of both. Writes evals/results/follow_ups.json.
"""

from __future__ import annotations

import json
from typing import Any

from common import RESULTS, ROOT, book_of, options, provenance, share, show, write
from textbooks import opened

import mamba_ssm
from examples import EXAMPLES, score
from mamba_ssm.book import Answer, Book, Engine
from mamba_ssm.book.conversation import leaves_out

PAIRS = ROOT / "evals" / "questions" / "follow_ups.jsonl"
STAND_ALONE = ("python_faq", "debian_handbook", "rust_book", "sciq")
AT_MOST = 201  # questions of a book


def follow_ups(book: Book, pairs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What came of each second question, in each way to ask it."""
    ways: dict[str, list[dict[str, Any]]] = {name: [] for name in ("alone", "search", "search_answer", "search_read")}
    for pair in pairs:
        first, question = pair["first"], pair["question"]
        said = book.ask(first).text
        answers: dict[str, Answer] = {
            "alone": book.ask(question),
            "search": book.ask(question, context=first),
            "search_answer": book.ask(question, context=f"{first} {said}"),
            "search_read": book.ask(f"{question} {first}"),
        }
        for name, answer in answers.items():
            ways[name].append(score(pair, answer) | {"question": question})
    ways["rule"] = [ways["search" if leaves_out(pair["question"]) else "alone"][i] for i, pair in enumerate(pairs)]
    return ways


def stand_alone(engine: Engine) -> list[dict[str, Any]]:
    """The rank of the evidence of each question that needs no other: asked alone, and with the one before it."""
    rows = []
    for name in STAND_ALONE:
        (textbook,) = opened(name, ROOT / "data" / "held_out")
        with book_of(engine, textbook.text) as book:
            asked = textbook.questions[:AT_MOST]
            for before, question, gold in zip(asked, asked[1:], textbook.gold[1:], strict=False):
                row: dict[str, Any] = {"book": name, "question": question, "rule": leaves_out(question)}
                for way, context in ("alone", ""), ("search", before):
                    spans = [(p.start, p.end) for p in book.ask(question, context=context).evidence]
                    row[way] = textbook.hit(spans, gold)
                rows.append(row)
    return rows


def figures(ranks: list[int | None]) -> dict[str, Any]:
    return {f"recall@{k}": share([rank is not None and rank <= k for rank in ranks]) for k in (1, 8)}


def main() -> int:
    arguments = options(__doc__ or "", n=24).parse_args()
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()][: arguments.n]
    engine = Engine.load(arguments.model, arguments.device)
    with mamba_ssm.read(EXAMPLES / "abs-guide.md", model=engine, progress=False) as book:
        ways = follow_ups(book, pairs)
    alone = stand_alone(engine)
    result = {
        "follow_ups": {
            way: figures([row["rank"] for row in rows])
            | {name: share([row[name] for row in rows]) for name in ("exact_match", "contains")}
            for way, rows in ways.items()
        },
        "stand_alone": {
            "alone": figures([row["alone"] for row in alone]),
            "search": figures([row["search"] for row in alone]),
            "rule": figures([row["search" if row["rule"] else "alone"] for row in alone]),
        },
        "taken_for_follow_ups": {
            "follow_ups": share([leaves_out(pair["question"]) for pair in pairs]),
            "first_questions": share([leaves_out(pair["first"]) for pair in pairs]),
            **{name: share([row["rule"] for row in alone if row["book"] == name]) for name in STAND_ALONE},
        },
    }
    write(
        arguments.out or RESULTS / "follow_ups.json",
        provenance(arguments, engine) | result | {"follow_up_rows": ways, "stand_alone_rows": alone},
    )
    for kind in ("follow_ups", "stand_alone"):
        for way, values in result[kind].items():
            for name, value in values.items():
                show(f"{kind}, {way}, {name}", value)
    for name, value in result["taken_for_follow_ups"].items():
        show(f"taken for follow-ups: {name}", value)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
