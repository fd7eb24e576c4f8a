"""Evidence recall where headings of a manual are asked, for development: its frequent questions, and Django's headings.

    python scripts/fetch_more_text.py
    python evals/manuals.py [--n 250]

Each manual is a book without its headings; a hit is a passage whose middle lies in what the heading stood above. Asked
are, of pages of frequent questions, headings that are questions, and of Django's other pages --n of the longer ones,
drawn at random. BM25 searches the same, over windows of 48 words, stride 24. No training reads these pages. Writes
evals/results/manuals.json.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from common import RESULTS, ROOT, options, provenance, write
from squad import Span
from textbooks import BREAK, Textbook, first_inside, measured

from mamba_ssm.book import Engine
from mamba_ssm.training.headings import without_number

sys.path.insert(0, str(ROOT / "scripts"))
from fetch_data import Book, find, pages, sections
from fetch_more_text import FAQS, MANUALS

FEWEST_WORDS, FEWEST_CHARACTERS = 4, 150
DJANGO = "python-django-doc"
ONLY_FAQS = rf"^(?!.*{FAQS})"  # what to skip
FAQ_OF = (DJANGO, "python-sqlalchemy-doc", "apache2-doc", "linux-doc-6.1")


def manual(book: Book, data: Path, questions_alone: bool) -> Textbook:
    package = find(f"{book.package}_*.deb", [data / "packages"])
    if package is None:
        raise SystemExit(f"{data} has no {book.package}: run python scripts/fetch_more_text.py")
    text, questions = "", []
    gold: list[list[Span]] = []
    for page in pages(package, book):
        for heading, body in sections(page):
            question = without_number(heading)
            asked = question.endswith("?") or not questions_alone
            if asked and len(question.split()) >= FEWEST_WORDS and len(body) >= FEWEST_CHARACTERS:
                questions.append(question)
                gold.append([(len(text), len(text) + len(body))])
            text += body + BREAK
    return Textbook(text, questions, gold, first_inside)


def some_of(book: Textbook, n: int, seed: int) -> Textbook:
    chosen = sorted(random.Random(seed).sample(range(len(book.questions)), min(n, len(book.questions))))
    return book._replace(questions=[book.questions[i] for i in chosen], gold=[book.gold[i] for i in chosen])


def main() -> int:
    parser = options(__doc__ or "", n=250)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model, arguments.device)
    result = provenance(arguments, engine) | {"books": {}}
    named = {book.package: book for book in MANUALS}

    def without(name: str, pages: str) -> Book:
        return named[name]._replace(skip=f"{named[name].skip}|{pages}")

    faqs = [manual(without(name, ONLY_FAQS), arguments.data, questions_alone=True) for name in FAQ_OF]
    django = manual(without(DJANGO, FAQS), arguments.data, questions_alone=False)
    headings = some_of(django, arguments.n, arguments.seed)
    for name, books in (("frequent questions", faqs), ("headings", [headings])):
        result["books"][name] = measured(engine, name, books)
    write(arguments.out or RESULTS / "manuals.json", result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
