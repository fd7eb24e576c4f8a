"""How reading a library grows with its workers, and what a question to its shards takes.

    python scripts/fetch_data.py
    python benchmarks/library.py --folder FOLDER [--texts data/text --books 16 --characters 250000 --workers 1 2]

The texts are cut into books, which are read into a new library in FOLDER once for each number of workers: processes of
a local Ray cluster, of one thread each. Reported for each: tokens and books a second, from when the first process
begins its first book to when the last book is in the library, so without the start of the models; the seconds of all
with that; and tokens for each second that a core worked, which hardly depends on what else the machine does. Then the
last library is served, and asked questions of SQuAD's development set over HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from shelf import DATA, percentiles, squad
from timing import machine, write

from mamba_ssm.cluster.reading import read_library
from mamba_ssm.cluster.serving import serve_library
from mamba_ssm.cluster.start import cluster

RESULT = Path(__file__).parent / "results" / "library.json"
SHARDS = 2


def books_of(texts: Path, folder: Path, count: int, characters: int) -> list[Path]:
    """Write so many books, cut from the texts in turn."""
    found = [path.read_text("utf-8", "replace") for path in sorted(texts.glob("*.txt"))]
    pieces = [text[i : i + characters] for text in found for i in range(0, len(text) - characters, characters)]
    if len(pieces) < count:
        raise SystemExit(f"{texts}: only {len(pieces)} books of {characters:,} characters; give fewer --books")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"book{number:05}.txt" for number in range(count)]
    for path, piece in zip(paths, pieces[:: len(pieces) // count], strict=False):
        path.write_text(piece, encoding="utf-8")
    return paths


def worked() -> float:
    """Seconds that the reading processes of this one have worked on a core, of those that live."""
    parents, readers = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        parents[int(process.name)] = int(fields[1])
        if name.startswith(b"ray::MapWorker"):
            readers[int(process.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def own(process: int) -> bool:
        return process == os.getpid() or (process in parents and own(parents[process]))

    return sum(seconds for process, seconds in readers.items() if own(process))


def reading(books: list[Path], out: Path, workers: int) -> dict[str, Any]:
    """Read the books into a new library."""
    shutil.rmtree(out, ignore_errors=True)
    load, started, begun = os.getloadavg()[0], time.perf_counter(), float("inf")
    tokens, first, most = 0, None, (0.0, 0)
    for book in read_library(books, out, shards=SHARDS, workers=workers):
        assert book.error is None, book.error
        last = time.perf_counter()
        begun, tokens = min(begun, last - book.seconds), tokens + book.tokens
        # From the first book on, which has the compilation in it, until the pool begins to end.
        most = max(most, (worked(), tokens))
        first = first or most
    files = sum(file.stat().st_size for file in out.rglob("*") if file.suffix in (".esi", ".safetensors"))
    return {
        "workers": workers,
        "books": len(books),
        "tokens": tokens,
        "seconds_reading": last - begun,
        "seconds_of_all": time.perf_counter() - started,
        "books_per_second": len(books) / (last - begun),
        "tokens_per_second": tokens / (last - begun),
        "tokens_per_second_of_a_core": (most[1] - first[1]) / (most[0] - first[0]),
        "bytes_per_token": files / tokens,
        "load_average_before": load,
    }


def asking(out: Path, questions: int) -> dict[str, Any]:
    """Seconds of questions over HTTP, one after the other, to a process for each shard and one in front."""
    paragraphs = squad()
    asked = [p["qas"][0]["question"] for p in paragraphs[:: max(len(paragraphs) // questions, 1)]][:questions]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seconds = []
    with serve_library(os.fspath(out), port=port):
        for question in ["Is anyone there?", *asked]:  # the first one compiles
            body, head = json.dumps({"question": question}).encode(), {"content-type": "application/json"}
            started = time.perf_counter()
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/ask", body, head)) as told:
                json.load(told)
            seconds.append(time.perf_counter() - started)
    return {
        "shards": SHARDS,
        "questions": len(asked),
        "seconds": percentiles(seconds[1:]),
        "load_average_after": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--texts", type=Path, default=DATA / "text")
    parser.add_argument("--books", type=int, default=16)
    parser.add_argument("--characters", type=int, default=250_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    books = books_of(arguments.texts, arguments.folder / "books", arguments.books, arguments.characters)
    library = arguments.folder / "library"
    read = []
    with cluster(None, max(*arguments.workers, SHARDS + 1)):
        for workers in arguments.workers:
            read.append(reading(books, library, workers))
            print(read[-1], flush=True)
        report = {"machine": machine(), "reading": read, "asking": asking(library, arguments.questions)}
    write(arguments.out, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
