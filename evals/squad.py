"""Evidence recall and answers on SQuAD v1.1, for books of one article, of ten, and of all of the split.

    python evals/squad.py [--split development|test] [--no-plain] [--peers]

Every book is a .txt that is read once through `mamba_ssm.read` and asked all of its questions, so what is measured is
what users get. A hit is a passage among the first k that contains a gold answer of the right paragraph, by characters.
The same model without search and injection reads the same books (`--no-esi` of the command). With --peers, BM25 over
windows of 48 words, stride 24, searches the same books for the same questions (needs the extra `evals`).

The split "development" is 40 articles that training leaves out; "test" is SQuAD's own development set, to be asked
once, to report. Fetch both with `python scripts/fetch_data.py`. Writes evals/results/squad[_development].json, and
beside it what was answered to each question.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, book_of, mean, options, provenance, ratio, share, show, write

from mamba_ssm.book import Answer, Engine
from mamba_ssm.training.metrics import best_of, calibration_error, exact_match, f1, risk_at_coverage
from mamba_ssm.training.squad import PARAGRAPH_BREAK, Article, article_text, development_titles, load_squad

KS = (1, 8, 32)
PLAIN_TOKENS = 16
COVERAGES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
BM25_WORDS, BM25_STRIDE = 48, 24
TARGETS = {  # of SQuAD's development set: recall@8, exact match, F1, F1 over F1 without ESI
    "one article": (0.96, 0.60, 0.70, 3.0),
    "ten articles": (0.955, 0.57, 0.665, 3.0),
    "all articles": (0.945, 0.57, 0.665, 3.0),
}
ARTICLES = {"one article": 1, "ten articles": 10}

Span = tuple[int, int]
Hit = Callable[[Iterable[Span], Iterable[Span]], int | None]


@dataclass(frozen=True)
class Asked:
    """A question and its right answers; ``gold`` are their characters in the text of ``article``, a number."""

    id: str
    text: str
    article: int
    gold: list[Span]
    answers: list[str]

    def moved(self, by: int) -> list[Span]:
        return [(start + by, end + by) for start, end in self.gold]


def questions_of(articles: Sequence[Article]) -> Iterator[Asked]:
    for number, article in enumerate(articles):
        for start, paragraph in zip(article_text(article)[1], article.paragraphs, strict=True):
            for question in paragraph.questions:
                gold = sorted({(start + at, start + at + len(answer)) for at, answer in question.answers})
                answers = [answer for _, answer in question.answers]
                yield Asked(question.id, question.text, number, gold, answers)


def join(texts: Iterable[str]) -> tuple[str, list[int]]:
    """Articles as one book, and the character at which each begins."""
    parts, starts, position = [], [], 0
    for text in texts:
        starts.append(position)
        parts.append(text)
        position += len(text) + len(PARAGRAPH_BREAK)
    return PARAGRAPH_BREAK.join(parts), starts


def first_hit(spans: Iterable[Span], gold: Iterable[Span]) -> int | None:
    """The rank, from 1, of the first span that contains a gold one."""
    gold = list(gold)
    for rank, (start, end) in enumerate(spans, 1):
        if any(start <= first and last <= end for first, last in gold):
            return rank
    return None


def word_windows(text: str) -> list[Span]:
    """Windows of 48 words, a new one every 24."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    firsts = range(0, max(len(words) - BM25_STRIDE, 1), BM25_STRIDE)
    return [(words[i][0], words[min(i + BM25_WORDS, len(words)) - 1][1]) for i in firsts]


def bm25(text: str, questions: Sequence[str], gold: Sequence[list[Span]], hit: Hit = first_hit) -> list[int | None]:
    """The rank of the first hit of BM25, of English words without stop words, stemmed."""
    import bm25s
    import Stemmer

    def terms(texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)

    windows = word_windows(text)
    index = bm25s.BM25()
    index.index(terms([text[start:end] for start, end in windows]), show_progress=False)
    found, _ = index.retrieve(terms(list(questions)), k=min(max(KS), len(windows)), show_progress=False)
    return [hit([windows[i] for i in row], spans) for row, spans in zip(found, gold, strict=True)]


def ask_book(
    engine: Engine, text: str, asked: Sequence[Asked], offsets: Sequence[int], plain: bool, peers: bool
) -> list[dict[str, Any]]:
    """Ask one book all its questions, whose articles begin at ``offsets`` in it. One record a question."""
    questions = [question.text for question in asked]
    moved = [question.moved(offset) for question, offset in zip(asked, offsets, strict=True)]
    with book_of(engine, text) as book:
        answers = book.ask_all(questions, passages=max(KS))
        without = book.ask_all(questions, esi=False, max_new_tokens=PLAIN_TOKENS) if plain else []
    records = [record(*row, text) for row in zip(asked, moved, answers, strict=True)]
    for row, question, answer in zip(records, asked, without, strict=False):
        row["plain"] = {"answer": answer.text, **quality(answer.text, question)}
    if peers:
        for row, rank in zip(records, bm25(text, questions, moved), strict=True):
            row["bm25_rank"] = rank
    return records


def record(question: Asked, gold: list[Span], answer: Answer, text: str) -> dict[str, Any]:
    for passage in answer.evidence:
        if text[passage.start : passage.end] != passage.text:
            raise AssertionError(f"{question.id}: evidence is not the slice of the book that its offsets say")
    return {
        "id": question.id,
        "rank": first_hit([(passage.start, passage.end) for passage in answer.evidence], gold),
        "answer": answer.text,
        "confidence": round(answer.confidence, 4),
        **quality(answer.text, question),
        "tokens": answer.book.tokens,
    }


def quality(said: str, question: Asked) -> dict[str, float]:
    values = {name: best_of(metric, said, question.answers) for name, metric in (("em", exact_match), ("f1", f1))}
    return {name: round(value, 4) for name, value in values.items()}


def ask_books(
    engine: Engine, texts: Sequence[str], asked: Sequence[Asked], each: int, plain: bool, peers: bool
) -> Iterator[dict[str, Any]]:
    """Ask books of ``each`` neighbouring articles."""
    for first in range(0, len(texts), each):
        text, starts = join(texts[first : first + each])
        own = [question for question in asked if first <= question.article < first + each]
        if own:
            yield from ask_book(engine, text, own, [starts[q.article - first] for q in own], plain, peers)
            print(f"  {min(first + each, len(texts))} of {len(texts)} articles", flush=True)


def summary(records: Sequence[dict[str, Any]], targets: Sequence[float | None]) -> dict[str, Any]:
    recall_target, em_target, f1_target, ratio_target = targets
    result = {"questions": len(records), "tokens_of_a_book": sum(r["tokens"] for r in records) / len(records)}
    result["recall"] = recalls([r["rank"] for r in records], recall_target)
    result["exact_match"] = share([r["em"] for r in records], em_target)
    result["f1"] = mean([r["f1"] for r in records], f1_target)
    sure, right = [r["confidence"] for r in records], [r["em"] for r in records]
    result["confidence"] = {
        "mean": sum(sure) / len(sure),
        "calibration_error": calibration_error(sure, right),
        "risk_at_coverage": {str(c): risk_at_coverage(sure, right, c) for c in COVERAGES},
    }
    if "plain" in records[0]:
        result["no_esi_exact_match"] = share([r["plain"]["em"] for r in records])
        result["no_esi_f1"] = mean([r["plain"]["f1"] for r in records])
        result["f1_over_no_esi_f1"] = ratio(
            [r["f1"] for r in records], [r["plain"]["f1"] for r in records], ratio_target
        )
    if "bm25_rank" in records[0]:
        result["bm25_recall"] = recalls([r["bm25_rank"] for r in records], None)
    return result


def recalls(ranks: Sequence[int | None], target: float | None) -> dict[str, Any]:
    return {f"@{k}": share([rank is not None and rank <= k for rank in ranks], target if k == 8 else None) for k in KS}


def load_split(split: str, folder: Path) -> list[Article]:
    if split == "test":
        return load_squad(folder / "dev-v1.1.json")
    articles = load_squad(folder / "train-v1.1.json")
    titles = development_titles(articles)
    return [article for article in articles if article.title in titles]


def print_summary(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {result['questions']} questions, {result['tokens_of_a_book']:,.0f} tokens a book")
    for who in ("recall", "bm25_recall"):
        for k, value in result.get(who, {}).items():
            show(f"  {who}{k}", value)
    for key in ("exact_match", "f1", "no_esi_exact_match", "no_esi_f1", "f1_over_no_esi_f1"):
        if key in result:
            show(f"  {key}", result[key])


def main() -> int:
    parser = options(__doc__ or "", n=1000)
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "squad", help="where SQuAD lies")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="also without ESI")
    parser.add_argument("--peers", action="store_true", help="also BM25")
    parser.add_argument("--books", nargs="+", choices=TARGETS, default=list(TARGETS), help="of how many articles each")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / ("squad.json" if arguments.split == "test" else "squad_development.json")

    engine = Engine.load(arguments.model, arguments.device)
    articles = load_split(arguments.split, arguments.data)
    everything = list(questions_of(articles))
    asked = random.Random(arguments.seed).sample(everything, min(arguments.n, len(everything)))
    texts = [article_text(article)[0] for article in articles]
    result = provenance(arguments, engine) | {
        "protocol": {
            "articles": len(articles),
            "hit": "one of the first k passages contains a gold answer of the right paragraph",
            "passage_tokens": engine.config.window,
            "windows_read": engine.config.top_k,
            "windows_ranked": max(KS),
            "no_esi": f"reads the whole book, then <|question|> question <|answer|>; greedy, {PLAIN_TOKENS} tokens",
            "confidence": "against exact match: calibration error over ten bins of as many answers",
            "bm25": f"windows of {BM25_WORDS} words, stride {BM25_STRIDE}",
            "intervals": "Wilson for proportions; bootstrap over questions, 10,000 resamples, for F1 and its ratio",
        },
        "books": {},
    }
    records: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.books:
        started = time.perf_counter()
        each = ARTICLES.get(name, len(texts))
        records[name] = list(ask_books(engine, texts, asked, each, arguments.plain, arguments.peers))
        result["books"][name] = summary(records[name], TARGETS[name]) | {"seconds": time.perf_counter() - started}
        write(out, result)
        print_summary(name, result["books"][name])
    lines = [json.dumps({"book": name, **row}, ensure_ascii=False) for name, rows in records.items() for row in rows]
    out.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nwritten to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
