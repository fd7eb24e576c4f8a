"""Evidence recall in books of other kinds than SQuAD's articles: a science textbook, manuals, and research papers.

    python scripts/fetch_data.py --held-out
    python evals/textbooks.py [--books qasper ...]

sciq: the paragraphs that support SciQ's questions, joined into one book; a hit is a passage that holds the right answer
in the question's own paragraph. Questions whose paragraph does not spell the answer are left out.
python_faq: the answers of Python's FAQ, without the questions that head them; those are asked, and a hit is a passage
whose middle lies in the right answer.
debian_handbook, rust_book: The Debian Administrator's Handbook and The Rust Programming Language, with 50 questions
each that were written for this, in evals/questions/; a hit is a passage that holds at least half of a quote there.
qasper: the questions of QASPER that are answered with yes or no, each asked of its own paper as a book; a hit is a
passage whose middle lies in a paragraph of the evidence. Questions that only a figure or a table answers are left out.
BM25 searches the same books, over windows of 48 words, stride 24. All are held out from training, and are asked only to
report. Writes evals/results/textbooks.json.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import RESULTS, ROOT, book_of, options, provenance, show, write
from selectolax.lexbor import LexborHTMLParser
from squad import KS, Hit, Span, bm25, first_hit, recalls

from mamba_ssm.book import Engine
from mamba_ssm.text import read_pieces

sys.path.insert(0, str(ROOT / "scripts"))
from fetch_data import paper_text, plain_text

QUESTIONS = ROOT / "evals" / "questions"
QUOTED = ("debian_handbook", "rust_book")
NAMES = ("sciq", "python_faq", *QUOTED, "qasper")
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


def first_half(spans: Iterable[Span], gold: Iterable[Span]) -> int | None:
    """The rank, from 1, of the first span that holds at least half of a gold one's characters."""
    gold = list(gold)
    for rank, (start, end) in enumerate(spans, 1):
        if any(2 * (min(end, last) - max(start, first)) >= last - first for first, last in gold):
            return rank
    return None


def requests(path: Path, key: str) -> list[dict[str, Any]]:
    """What is asked in a file in the form of oe-eval, where a question stands in several rows, in ``doc``."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        docs = {doc[key]: doc for doc in (json.loads(line)["doc"] for line in file)}
    return list(docs.values())


def occurrences(text: str, phrase: str) -> list[Span]:
    return [match.span() for match in re.finditer(re.escape(phrase), text)]


def sciq(path: Path) -> Textbook:
    docs = requests(path, "index")
    starts: dict[str, int] = {}
    text = ""
    for doc in docs:
        if doc["support"] and doc["support"] not in starts:
            starts[doc["support"]] = len(text)
            text += doc["support"] + BREAK
    questions, gold = [], []
    for doc in docs:
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


def quoted(folder: Path, questions: Path) -> Textbook:
    """From numbered HTML pages, and lines of JSON with a ``question`` and the ``quotes`` that answer it."""
    pages = sorted(folder.glob("*.html"), key=lambda page: int(page.stem))
    text = BREAK.join("".join(piece.text for piece in read_pieces(page)) for page in pages)
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    for row in asked:
        if any(text.count(quote) != 1 for quote in row["quotes"]):
            raise SystemExit(f"{folder} does not hold the answer to {row['question']!r} once: fetch that book again")
    gold = [[span for quote in row["quotes"] for span in occurrences(text, quote)] for row in asked]
    return Textbook(text, [row["question"] for row in asked], gold, first_half)


def qasper(path: Path) -> list[Textbook]:
    """One book for each paper. Evidence that is a figure or a table is not in the text."""
    papers: dict[str, Textbook] = {}
    for doc in requests(path, "question_id"):
        paper = papers.setdefault(doc["title"], Textbook(paper_text(doc), [], [], first_inside))
        gold = [span for paragraph in doc["evidence"] for span in occurrences(paper.text, paragraph)]
        if gold:
            paper.questions.append(doc["question"])
            paper.gold.append(gold)
    return [paper for paper in papers.values() if paper.questions]


def opened(name: str, held_out: Path) -> list[Textbook]:
    """The books of one of NAMES."""
    if name == "qasper":
        return qasper(held_out / "qasper.jsonl.gz")
    if name == "sciq":
        return [sciq(held_out / "sciq.jsonl.gz")]
    if name == "python_faq":
        return [python_faq(held_out / "python_faq")]
    return [quoted(held_out / name, QUESTIONS / f"{name}.jsonl")]


def ask(engine: Engine, book: Textbook) -> list[int | None]:
    """The rank of the first hit of each question."""
    with book_of(engine, book.text) as opened:
        answers = opened.ask_all(book.questions, passages=max(KS))
    found = [[(passage.start, passage.end) for passage in answer.evidence] for answer in answers]
    return [book.hit(spans, gold) for spans, gold in zip(found, book.gold, strict=True)]


def measured(engine: Engine, name: str, books: Sequence[Textbook]) -> dict[str, Any]:
    """Recall in books of one kind, beside BM25's, which is also printed."""
    ranks = [rank for book in books for rank in ask(engine, book)]
    peer = [rank for book in books for rank in bm25(*book)]
    row: dict[str, Any] = {
        "books": len(books),
        "questions": len(ranks),
        "characters": sum(len(book.text) for book in books),
        "recall": recalls(ranks, None),
        "bm25_recall": recalls(peer, None),
    }
    print(f"{name}: {row['books']} books, {row['questions']} questions, {row['characters']:,} characters")
    for who in ("recall", "bm25_recall"):
        for k, value in row[who].items():
            show(f"  {who}{k}", value)
    return row


def main() -> int:
    parser = options(__doc__ or "", n=0)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "held_out")
    parser.add_argument("--books", nargs="+", choices=NAMES, default=NAMES, help="which to ask (default: all)")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / "textbooks.json"
    engine = Engine.load(arguments.model, arguments.device)
    result = provenance(arguments, engine) | {"books": {}}
    for name in arguments.books:
        books = opened(name, arguments.data)
        result["books"][name] = measured(engine, name, books)
        write(out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
