"""What it is worth to judge found windows anew (mamba_ssm/book/rank.py), and how its constants were chosen.

    python scripts/fetch_data.py
    python evals/ranking.py [--n 500]

Questions of the 40 development articles, each in a book of its article alone and in one of all 40. The search finds
windows; recall is reported of their order by score, and by fit for each choice of the constants; then of the passages
that the reader makes of the best 32 by fit, and exact match of answers from the 8 of these that are best by score, by
both together, and by fit. Writes evals/results/ranking.json.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, book_of, options, provenance, write
from numpy.typing import NDArray
from squad import Asked, Span, first_hit, join, load_split, quality, questions_of

from mamba_ssm.book import Engine, rank
from mamba_ssm.book.answers import point
from mamba_ssm.book.book import MAX_NEW_TOKENS
from mamba_ssm.book.find import Finder, Found
from mamba_ssm.book.rank import Ranked
from mamba_ssm.esi import reader
from mamba_ssm.esi.module import Question
from mamba_ssm.training.squad import article_text

KS = (1, 8, 32)
RARITIES, SHARES, FIT_SHARES = (0.0, 0.5, 1.0), (0.0, 0.4, 0.7, 1.0), (0.3, 0.9)
ORDERS: dict[str, Callable[[Ranked], float]] = {
    "score": lambda each: -each.score,
    "both": lambda each: -each.score - each.fit,
    "fit": lambda each: -each.fit,
}


@dataclass(frozen=True)
class Case:
    """A question in a book, and what the search found."""

    asked: Asked
    gold: list[Span]
    question: Question
    found: list[Found]
    counts: NDArray[np.int64]

    def ranked(self, engine: Engine) -> list[Ranked]:
        return rank.rank(self.asked.text, self.question, self.found, self.counts, engine.config.n_ranked)

    def by_fit(self, engine: Engine) -> list[Ranked]:
        return sorted(self.ranked(engine), key=lambda each: -each.fit)


def cases(engine: Engine, texts: Sequence[str], asked: Sequence[Asked], each: int) -> Iterator[Case]:
    for first in range(0, len(texts), each):
        text, starts = join(texts[first : first + each])
        own = [question for question in asked if first <= question.article < first + each]
        if not own:
            continue
        questions = [engine.question(question.text) for question in own]
        finder = Finder([question.query for question in questions], rank.KEPT * engine.config.n_ranked, engine)
        with book_of(engine, text) as book:
            for block, keys in book._source.blocks():
                finder.push(block, keys)
        counts = finder.counts()
        for one, question, found in zip(own, questions, finder.found(), strict=True):
            yield Case(one, one.moved(starts[one.article - first]), question, found, counts)


def recalls(ranks: Sequence[int | None]) -> dict[str, float]:
    return {f"@{k}": sum(r is not None and r <= k for r in ranks) / len(ranks) for k in KS}


def order_of(windows: Sequence[Found | Ranked], gold: list[Span]) -> int | None:
    passages = (each.window.passage(0.0) for each in windows)
    return first_hit([(passage.start, passage.end) for passage in passages], gold)


def answered(engine: Engine, some: Sequence[Case], how: str) -> dict[str, float]:
    """Recall of passages, exact match and F1, with the reader given windows in the order of ``how``."""
    ranks: list[int | None] = []
    marks = []
    for case in some:
        windows = sorted(case.ranked(engine), key=ORDERS[how])
        said = point(engine, case.question, windows, engine.config.top_k, MAX_NEW_TOKENS)
        ranks.append(first_hit([(passage.start, passage.end) for passage in said.evidence], case.gold))
        marks.append(quality(said.text, case.asked))
    return recalls(ranks) | {name: sum(mark[name] for mark in marks) / len(marks) for name in ("em", "f1")}


def main() -> int:
    parser = options(__doc__ or "", n=500)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "squad", help="where SQuAD lies")
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model, arguments.device)
    articles = load_split("development", arguments.data)
    asked = random.Random(arguments.seed).sample(list(questions_of(articles)), arguments.n)
    texts = [article_text(article)[0] for article in articles]
    chosen = {"rarity": rank.RARITY, "before_share": rank.BEFORE_SHARE, "fit_share": reader.FIT_SHARE}
    result: dict[str, Any] = provenance(arguments, engine) | {"chosen": chosen, "books": {}}
    for name, each in (("one article", 1), ("all articles", len(texts))):
        some = list(cases(engine, texts, asked, each))
        book: dict[str, Any] = {"by score": recalls([order_of(case.found, case.gold) for case in some]), "by fit": []}
        for rarity, share in itertools.product(RARITIES, SHARES):
            rank.RARITY, rank.BEFORE_SHARE = rarity, share
            ranks = [order_of(case.by_fit(engine), case.gold) for case in some]
            book["by fit"].append({"rarity": rarity, "before_share": share, **recalls(ranks)})
        rank.RARITY, rank.BEFORE_SHARE = chosen["rarity"], chosen["before_share"]
        book["answered"] = {how: answered(engine, some, how) for how in ORDERS}
        book["by fit share"] = []
        for share in FIT_SHARES:
            reader.FIT_SHARE = share
            book["by fit share"].append({"fit_share": share, **answered(engine, some, "both")})
        reader.FIT_SHARE = chosen["fit_share"]
        result["books"][name] = book
        write(arguments.out or RESULTS / "ranking.json", result)
        print(name, book["by score"])
        for row in book["by fit"] + [{"how": how, **row} for how, row in book["answered"].items()]:
            print("  ", row)
        for row in book["by fit share"]:
            print("  ", row, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
