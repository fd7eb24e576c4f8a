"""Processor seconds of a question on a saved book, with headings and without, in turn.

    python evals/heading_latency.py BOOK.esi

On one thread, and of the process alone, so that what else the machine does counts little. "first" embeds the titles.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import mamba_ssm
from mamba_ssm.book import Book, Engine

QUESTION = "What does exit status 127 mean?"
ROUNDS = 10


def seconds(book: Book) -> float:
    started = time.process_time()
    book.ask(QUESTION)
    return time.process_time() - started


class Without(Engine):
    """Knows no headings."""

    def headings(self, *_: object) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("book", type=Path, help="a book that `mamba-esi read` saved")
    path = parser.parse_args().book
    torch.set_num_threads(1)
    engine = Engine.load()
    other = Without(engine.model, engine.tokenizer, engine.name)
    with mamba_ssm.load_book(path, other) as plain, mamba_ssm.load_book(path, engine) as book:
        seconds(plain)  # loads what is loaded once
        first = seconds(book)
        pairs = [(seconds(plain), seconds(book)) for _ in range(ROUNDS)]
    without, with_headings = (sorted(column) for column in zip(*pairs, strict=True))
    print(f"first with headings  {first:.3f}")
    for name, times in (("without", without), ("with headings", with_headings)):
        print(f"{name:20} best {times[0]:.3f}  median {times[ROUNDS // 2]:.3f}")


if __name__ == "__main__":
    main()
