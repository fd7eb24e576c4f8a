"""Evidence recall in books of other kinds than SQuAD's articles: a science textbook, and a manual.

    python scripts/fetch_data.py --held-out
    python evals/textbooks.py

sciq: the paragraphs that support SciQ's questions, joined into one book; a hit is a passage that holds the right answer
in the question's own paragraph. Questions whose paragraph does not spell the answer are left out.
python_faq: the answers of Python's FAQ, without the questions that head them; those are asked, and a hit is a passage
whose middle lies in the right answer. BM25 searches the same books, over windows of 48 words, stride 24.
Both are held out from training, and are asked only to report. Writes evals/results/textbooks.json.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common import RESULTS, ROOT, book_of, options, provenance, show, write
from selectolax.lexbor import LexborHTMLParser
from squad import KS, Hit, Span, bm25, first_hit, recalls

from mamba_ssm.book import Engine

sys.path.insert(0, str(ROOT / "scripts"))
from fetch_data import plain_text

BREAK = "\n\n"


class Textbook(NamedTuple):
    """A text, questions, and for each the spans of characters that are right, by the rule ``hit``."""

    text: str
    questions: list[str]
    gold: list[list[Span]]
    hit: Hit


def first_inside(spans: Iterable[Span], gold: Iterable[Span]) -> int | None:
    """The rank, from 1, of the first span whose middle lies in a gold one."""
    gold = list(gold)
    for rank, (start, end) in enumerate(spans, 1):
        if any(first <= (start + end) // 2 < last for first, last in gold):
            return rank
    return None


def sciq(path: Path) -> Textbook:
    """From requests in the form of oe-eval: a question stands in several rows, in ``doc``."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        docs = {doc["index"]: doc for doc in (json.loads(line)["doc"] for line in file)}
    starts: dict[str, int] = {}
    text = ""
    for doc in docs.values():
        if doc["support"] and doc["support"] not in starts:
            starts[doc["support"]] = len(text)
            text += doc["support"] + BREAK
    questions, gold = [], []
    for doc in docs.values():
        answer, support = doc["correct_answer"].casefold(), doc["support"]
        at = support.casefold().find(answer)
        if support and at >= 0 and len(support.casefold()) == len(support):
            questions.append(doc["question"])
            gold.append([(starts[support] + at, starts[support] + at + len(answer))])
    return Textbook(text, questions, gold, first_hit)


def python_faq(folder: Path) -> Textbook:
    """From the manual's HTML pages: headings of the third level that are questions."""
    text, questions, gold = "", [], []
    for page in sorted(folder.glob("*.html")):
        for heading in LexborHTMLParser(page.read_text(encoding="utf-8")).css("section > h3"):
            question, section = heading.text().strip().removesuffix("¶"), heading.parent
            assert section is not None
            heading.decompose()
            body = plain_text(section.html or "")
            if question.endswith("?") and body:
                questions.append(question)
                gold.append([(len(text), len(text) + len(body))])
            text += body + BREAK
    return Textbook(text, questions, gold, first_inside)


def ask(engine: Engine, book: Textbook) -> list[int | None]:
    """The rank of the first hit of each question."""
    with book_of(engine, book.text) as opened:
        answers = opened.ask_all(book.questions, passages=max(KS))
    found = [[(passage.start, passage.end) for passage in answer.evidence] for answer in answers]
    return [book.hit(spans, gold) for spans, gold in zip(found, book.gold, strict=True)]


def main() -> int:
    parser = options(__doc__ or "", n=0)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "held_out")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / "textbooks.json"
    engine = Engine.load(arguments.model, arguments.device)
    result = provenance(arguments, engine) | {"books": {}}
    books = {"sciq": sciq(arguments.data / "sciq.jsonl.gz"), "python_faq": python_faq(arguments.data / "python_faq")}
    for name, book in books.items():
        row = {
            "questions": len(book.questions),
            "characters": len(book.text),
            "recall": recalls(ask(engine, book), None),
            "bm25_recall": recalls(bm25(book.text, book.questions, book.gold, book.hit), None),
        }
        result["books"][name] = row
        write(out, result)
        print(f"{name}: {len(book.questions)} questions, {len(book.text):,} characters")
        for who in ("recall", "bm25_recall"):
            for k, value in row[who].items():
                show(f"  {who}{k}", value)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
