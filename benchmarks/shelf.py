"""How fast a large shelf answers, in how much memory, and whether its two passes find what scoring every key finds.

    python scripts/fetch_data.py
    python benchmarks/shelf.py --folder FOLDER --fill
    python benchmarks/shelf.py --folder FOLDER [--books 200 --tokens 300000 --questions 100]

SQuAD's development articles and the manuals and books in data/text are cut into texts, three of each, which are read
by the default model. The shelf is filled up with copies of what was read: in each another random tenth of the tokens is
replaced by tokens of the same block, and all numbers of all keys change at random, so that no two copies hold the same
windows. Their keys take 128 bytes a token: 8 GB for 60 million. FOLDER is filled with --fill first, and used again.

Asked are questions of SQuAD's development set. Reported, over the questions: seconds of `Shelf.ask` (also of the first
call alone, and of all cores together, which hardly depend on what else the machine does); the peak resident memory of
the process, and what is resident after the last question, in files that are mapped and otherwise; and the share of the
exact search's 8 and 32 best windows that the two passes find.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine, write

from mamba_ssm.book import Engine, Shelf, ShelfBook, index
from mamba_ssm.book.find import Finder
from mamba_ssm.book.shelving import now
from mamba_ssm.book.source import BookInfo, Report
from mamba_ssm.book.store import StoredSource
from mamba_ssm.book.store import write as write_esi
from mamba_ssm.esi.search import Keys

DATA = Path(__file__).parents[1] / "data"
RESULT = Path(__file__).parent / "results" / "shelf.json"
NOISE = 12  # at most, of numbers up to 127
REPLACED = 0.1
CUTS = 3  # of a text
TOP = (8, 32)


class Copy:
    """A book that was read, with other tokens and keys here and there."""

    def __init__(self, source: StoredSource, seed: int) -> None:
        assert source.info is not None
        self.source, self.seed = source, seed
        self.info: BookInfo | None = replace(source.info, sha256=f"{seed:064x}")

    def blocks(self, report: Report | None = None):
        drawn = np.random.default_rng(self.seed)
        for block, keys in self.source.blocks():
            ids, codes, scales = block.ids.copy(), keys.codes.numpy().copy(), keys.scales.numpy().copy()
            n = len(ids)
            places = np.flatnonzero(drawn.random(n) < REPLACED)
            taken = drawn.integers(0, n, len(places))
            for part in (ids, codes, scales):
                part[places] = part[taken]
            noise = drawn.integers(-NOISE, NOISE, codes[:n].shape, np.int8, endpoint=True)
            codes[:n] = np.clip(codes[:n], NOISE - 127, 127 - NOISE) + noise
            yield replace(block, ids=ids), Keys(torch.from_numpy(codes), torch.from_numpy(scales))

    def texts(self, report: Report | None = None):
        for block, _ in self.blocks(report):
            yield block


def squad() -> list[dict[str, Any]]:
    articles = json.loads((DATA / "squad" / "dev-v1.1.json").read_text("utf-8"))["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def texts(characters: int) -> list[str]:
    """SQuAD's articles first, then the others, cut."""
    found = ["\n\n".join(paragraph["context"] for paragraph in squad())]
    for path in sorted((DATA / "text").glob("*.txt")):
        text = path.read_text("utf-8", "replace")
        found += [text[i : i + characters] for i in range(0, min(len(text), CUTS * characters), characters)]
    return found


def fill(shelf: Shelf, folder: Path, books: int, tokens: int) -> None:
    """Read what there is, and copy it until there are so many books."""
    engine = shelf.engine
    for number, text in enumerate(texts(4 * tokens)[:books]):
        path = folder / f"text{number:03}.txt"
        path.write_text(text, encoding="utf-8")
        shelf.add(path)
    originals = [book for book in shelf.books() if book.path.startswith(str(folder))]
    for number in range(len(shelf.books()), books):
        original = originals[number % len(originals)]
        name = f"copy{number:03}"
        with shelf._library.adding():
            with shelf._source(original) as source, shelf._file(name, ".esi").open("wb") as file:
                write_esi(Copy(source, number), engine, file)
            sha256 = f"{number:064x}"
            copy = ShelfBook(
                f"copy{number:012}",
                f"{original.title}, copy {number}",
                f"{original.path}#{number}",
                sha256,
                original.tokens,
                original.characters,
                now(),
                engine.fingerprint,
                name,
            )
            with shelf._source(copy) as source:
                index.Index.of(source, engine.config.window).save(shelf._file(name, index.SUFFIX))
            shelf._library.insert(copy, [])
        print(f"{number + 1} books", flush=True)


def memory() -> dict[str, int]:
    """Bytes: the most that was resident, and what is now, apart from files that are mapped."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kept = {name: 1024 * int(lines[name].split()[0]) for name in ("RssAnon", "RssFile")}
    return {"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, **kept}


def exact(shelf: Shelf, questions: list[str]) -> list[list[tuple[str, int]]]:
    """The best windows of each question, by book and first token, with every key scored; a pass for all."""
    engine, best = shelf.engine, [[] for _ in questions]
    queries = [engine.question(question).query for question in questions]
    for book in shelf.books():
        with shelf._source(book) as source:
            finder = Finder(queries, max(TOP), engine)
            for block, keys in source.blocks():
                finder.push(block, keys)
        for found, more in zip(best, finder.found(), strict=True):
            found += [(each.score, book.id, each.window.first) for each in more]
            found.sort(reverse=True)
            del found[max(TOP) :]
    return [[(book, first) for _, book, first in found] for found in best]


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95)} | {"most": max(values)}


def measure(folder: Path, questions: int, compared: int) -> dict[str, Any]:
    paragraphs = squad()
    asked = [p["qas"][0]["question"] for p in paragraphs[:: max(len(paragraphs) // questions, 1)]][:questions]
    engine, load = Engine.load(), os.getloadavg()[0]
    with Shelf.open(folder / "shelf", engine) as shelf:
        books = shelf.books()
        tokens = sum(book.tokens for book in books)
        print(f"{len(books)} books, {tokens:,} tokens", flush=True)
        shelf.ask("Is anyone there?")  # makes the table of mean keys, and compiles; neither is part of a question
        del shelf._indexes
        shelf._indexes = {}
        started = time.perf_counter()
        shelf.ask(asked[0])
        first = time.perf_counter() - started
        seconds, busy, parts = [], [], []
        for question in asked:
            started, worked = time.perf_counter(), time.process_time()
            answer = shelf.ask(question)
            seconds.append(time.perf_counter() - started)
            busy.append(time.process_time() - worked)
            parts.append(answer.seconds)
        taken = memory()
        print("seconds", percentiles(seconds), "memory", taken, flush=True)
        recall: dict[str, float] = {}
        if compared:
            some = asked[:: max(len(asked) // compared, 1)][:compared]
            right = exact(shelf, some)
            found = [shelf.search(engine.question(question).query, books, max(TOP))[0] for question in some]
            for k in TOP:
                shares = [
                    len(set(best[:k]) & {(each.window.book, each.window.first) for each in windows[:k]}) / k
                    for best, windows in zip(right, found, strict=True)
                ]
                recall[f"recall@{k}"] = float(np.mean(shares))
        return {
            "books": len(books),
            "tokens": tokens,
            "questions": len(asked),
            "seconds": percentiles(seconds),
            "seconds_of_all_cores_together": percentiles(busy),
            "load_average_before": load,
            "seconds_of_search": percentiles([part.search for part in parts]),
            "seconds_of_answer": percentiles([part.answer for part in parts]),
            "seconds_of_the_first": first,
            "memory": taken,
            "compared": compared,
            "against_the_exact_search": recall,
            "candidates": index.CANDIDATES,
            "threads": torch.get_num_threads(),
            "bytes_on_disk": sum(file.stat().st_size for file in (folder / "shelf").rglob("*") if file.is_file()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--books", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--compared", type=int, default=16)
    parser.add_argument("--fill", action="store_true", help="fill the shelf, and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.fill:
        with Shelf.open(arguments.folder / "shelf") as shelf:
            fill(shelf, arguments.folder.resolve(), arguments.books, arguments.tokens)
        return
    report = {"machine": machine(), **measure(arguments.folder, arguments.questions, arguments.compared)}
    write(arguments.out, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
