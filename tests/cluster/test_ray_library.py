"""A library in shards: read by processes that may die, and asked as one shelf."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from mamba_ssm.book import Engine, Shelf, index
from mamba_ssm.cluster.reading import read_library
from mamba_ssm.cluster.serving import serve_library
from mamba_ssm.cluster.shards import Shards
from mamba_ssm.cluster.start import cluster
from mamba_ssm.errors import ClusterError, ShelfError

QUESTIONS = ["Who planted 42 trees near Zürich in chapter 6?", "How many of the sails are red?", "What do pelicans do?"]
MANY = 1 << 40  # tokens: so many are searched in two passes
WORDS = ["garden", "tree", "sail", "river", "stone", "lamp", "pelican", "window", "red", "seven", "Zürich", "planted"]


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Engine.load(tiny_model)


@pytest.fixture(scope="module")
def books(tmp_path_factory, book_text):
    """Nine books of different words, one of them with chapters."""
    folder, drawn = tmp_path_factory.mktemp("texts"), random.Random(0)
    (folder / "garden.md").write_text(book_text, encoding="utf-8")
    for number in range(8):
        words = " ".join(f"{drawn.choice(WORDS)}{'.' if n % 9 == 8 else ''}" for n in range(25_000))
        (folder / f"words{number}.txt").write_text(f"Book {number}. {words}")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def library(engine, books, tmp_path_factory):
    """The books in two shards, read in this process."""
    shards = Shards.begin(tmp_path_factory.mktemp("library"), 2, engine.fingerprint)
    for book in books:
        shards.add(book, engine)
    shards.finish(engine)
    return shards


@pytest.fixture(scope="module")
def shelf(engine, books, tmp_path_factory):
    """The same books on one shelf."""
    with Shelf.open(tmp_path_factory.mktemp("shelf"), engine) as opened:
        for book in books:
            opened.add(book)
        yield opened


@pytest.fixture(scope="module")
def ray_cluster():
    with cluster(None, 6):
        yield


def titles(shards, engine):
    found = []
    for number in range(shards.count):
        with Shelf.open(shards.folder(number), engine) as shelf:
            found += [book.title for book in shelf.books()]
    return sorted(found)


def windows(found):
    return [(each.window.book, each.window.first, each.window.text, each.score, each.gain) for each in found]


def search_both(library, shelf, engine, question, tokens):
    """What one shelf finds, and what the shards find together."""
    query, found = engine.question(question).query, []
    for number in range(library.count):
        with Shelf.open(library.folder(number), engine) as shard:
            found += shard.search(query, shard.books(), 32, tokens)[0]
    together = sorted(found, key=lambda each: -each.score)[:32]
    return windows(shelf.search(query, shelf.books(), 32, tokens)[0]), windows(together)


def test_shards_together_find_what_one_shelf_finds(library, shelf, engine):
    for question in QUESTIONS:
        expected, found = search_both(library, shelf, engine, question, 1)
        assert found == expected


def test_in_two_passes_shards_find_no_worse(library, shelf, engine, monkeypatch):
    """Each takes as many candidates as one shelf does; with enough for all windows the two are the same."""
    expected, found = search_both(library, shelf, engine, QUESTIONS[0], MANY)
    assert all(one[3] <= other[3] for one, other in zip(expected, found, strict=True))
    monkeypatch.setattr(index, "CANDIDATES", 1 << 20)
    expected, found = search_both(library, shelf, engine, QUESTIONS[0], MANY)
    assert found == expected


def test_what_is_there_is_not_read_again(engine, books, tmp_path):
    shards = Shards.begin(tmp_path / "library", 2, engine.fingerprint)
    assert shards.add(books[0], engine).new
    assert not shards.add(books[0], engine).new  # its row waits for the shelf
    shards.finish(engine)
    assert not shards.add(books[0], engine).new  # it is on the shelf
    shards.finish(engine)
    assert titles(shards, engine) == [books[0].stem]
    for number in range(2):
        with Shelf.open(shards.folder(number), engine) as shelf:
            for book in shelf.books():
                shelf.remove(book.id)
    assert shards.add(books[0], engine).new


def test_a_path_means_the_same_to_all_processes(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = Shards.begin("library", 1, engine.fingerprint)
    assert begun == Shards.open(tmp_path / "library")


def test_files_without_a_row_are_no_book(engine, books, tmp_path):
    shards = Shards.begin(tmp_path / "library", 1, engine.fingerprint)
    added = shards.add(books[0], engine)
    read = shards.folder(0) / "read"
    next(read.glob("*.json")).unlink()  # a process died before it wrote that
    (read / ".mamba-esi-dead").mkdir()
    assert shards.add(books[0], engine) == added
    next(read.glob("*.json")).unlink()
    shards.finish(engine)
    assert titles(shards, engine) == []
    assert not read.exists()


def test_taking_in_goes_on_where_it_was_broken_off(engine, books, tmp_path):
    shards = Shards.begin(tmp_path / "library", 1, engine.fingerprint)
    shards.add(books[0], engine)
    row = next((shards.folder(0) / "read").glob("*.json"))
    kept = row.read_bytes()
    with Shelf.open(shards.folder(0), engine) as shelf:
        # One file had its second name when the process died.
        (shelf.folder / "books" / f"{row.stem}.esi").hardlink_to(row.with_suffix(".esi"))
        shelf.take_in(row.parent)
        before = sorted(file.name for file in (shelf.folder / "books").iterdir())
        assert len(before) == 2
        # The book was on the shelf, and its row still there.
        row.write_bytes(kept)
        for name in before:
            os.link(shelf.folder / "books" / name, row.parent / name)
        shelf.take_in(row.parent)
        assert sorted(file.name for file in (shelf.folder / "books").iterdir()) == before
        assert shelf.ask(QUESTIONS[0]).evidence


def test_a_row_of_another_book_is_refused(engine, books, tmp_path):
    shards = Shards.begin(tmp_path / "library", 1, engine.fingerprint)
    shards.add(books[0], engine)
    row = next((shards.folder(0) / "read").glob("*.json"))
    content = json.loads(row.read_text())
    for change in ({"file": "../../elsewhere"}, {"tokens": "many"}, {"id": "0"}):
        row.write_text(json.dumps({**content, "book": {**content["book"], **change}}))
        with pytest.raises(ShelfError, match="damaged"):
            shards.finish(engine)


def test_a_url_keeps_what_was_read_and_is_copied_to_be_asked(engine, books, tmp_path, shelf):
    shards = Shards.begin(f"file://{tmp_path}/library", 1, engine.fingerprint)
    assert all(shards.add(book, engine).new for book in books[:2])
    shards.finish(engine)
    assert not shards.add(books[0], engine).new
    assert sorted(file.suffix for file in (tmp_path / "library" / "shard-0000" / "read").iterdir()) == [
        ".esi", ".esi", ".json", ".json", ".safetensors", ".safetensors"
    ]  # fmt: skip
    (tmp_path / "scratch").mkdir()
    opened = Shards.open(f"file://{tmp_path}/library").shelf(0, engine, tmp_path / "scratch")
    with opened:
        assert sorted(book.title for book in opened.books()) == [book.stem for book in books[:2]]
        two = [book.id for book in shelf.books()[:2]]
        answer, expected = opened.ask(QUESTIONS[0]), shelf.ask(QUESTIONS[0], two)
        assert (answer.text, answer.evidence) == (expected.text, expected.evidence)


def test_errors_say_what_to_do(engine, other_model, tmp_path, library):
    with pytest.raises(ClusterError, match="no library is there"):
        Shards.open(tmp_path)
    with pytest.raises(ClusterError, match="has 2 shards"):
        Shards.begin(library.url, 4, engine.fingerprint)
    with pytest.raises(ClusterError, match="another model"):
        Shards.begin(library.url, None, Engine.load(other_model).fingerprint)
    with pytest.raises(ClusterError, match="another model"), serve_library(library.url, model=other_model):
        pass
    with pytest.raises(ClusterError, match="cannot be used"):
        Shards.open("nowhere://bucket/folder")
    (tmp_path / "library.json").write_text('{"version": 1, "shards": -1, "fingerprint": ""}')
    with pytest.raises(ClusterError, match="damaged"):
        Shards.open(tmp_path)
    with pytest.raises(ClusterError, match="no Ray cluster at"):
        list(read_library([__file__], tmp_path / "other", address="127.0.0.1:1", model=engine.name))


def who_reads(folder):
    """A process that has a book's file of a library open to write."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(file.startswith(str(folder)) and file.endswith(".esi") for file in files):
            return int(process.name)
    return None


def test_a_process_that_is_killed_loses_nothing(ray_cluster, engine, books, library, tmp_path, tiny_model):
    out, killed = tmp_path / "library", []

    def kill():
        while not killed:
            if (process := who_reads(out)) is not None:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.001)

    (tmp_path / "empty.txt").write_bytes(b"")
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    asked = [*books, tmp_path / "empty.txt", books[0]]
    finished = list(read_library(asked, out, shards=2, workers=2, model=tiny_model))
    assert killed
    assert killed[0] != os.getpid()
    failed = [book for book in finished if book.error]
    assert [book.path for book in failed] == [str(tmp_path / "empty.txt")]
    assert "empty" in failed[0].error
    # As the run in this process, that nobody disturbed.
    undisturbed = [library.add(book, engine) for book in books]
    read = {book.path: book for book in finished if not book.error}
    assert len(finished) == len(books) + 1
    for path, expected in zip(books, undisturbed, strict=True):
        book = read[str(path)]
        assert (book.sha256, book.shard, book.tokens) == (expected.sha256, expected.shard, expected.tokens)
    shards = Shards.open(out)
    assert titles(shards, engine) == titles(library, engine)
    assert not list(out.rglob("*.part")) + list(out.rglob("read"))
    for number in range(2):
        with Shelf.open(out / f"shard-{number:04}", engine) as one, Shelf.open(library.folder(number), engine) as other:
            for question in QUESTIONS:
                if one.books():
                    order = sorted(book.id for book in one.books())
                    answer, expected = one.ask(question, order), other.ask(question, order)
                    assert (answer.text, answer.evidence) == (expected.text, expected.evidence)


def post(port, body, **headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/ask", json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.headers["content-type"], json.load(error)["status"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return port


def test_a_library_answers_over_http_as_one_shelf(ray_cluster, library, shelf, tiny_model, tmp_path):
    port, folder = free_port(), shutil.copytree(library.url, tmp_path / "library")
    with serve_library(os.fspath(folder), port=port, model=tiny_model):
        for question in QUESTIONS:
            expected = shelf.ask(question, passages=5)
            status, answer = post(port, {"question": question, "passages": 5})
            assert status == 200
            assert (answer["answer"], answer["confidence"]) == (expected.text, expected.confidence)
            assert answer["book_id"] == expected.book.sha256[:16]
            assert [(p["book_id"], p["start"], p["end"], p["text"], p["score"]) for p in answer["evidence"]] == [
                (p.book, p.start, p.end, p.text, p.score) for p in expected.evidence
            ]
            assert answer["titles"] == {p.book: shelf.book(p.book).title for p in expected.evidence}
        problem = "application/problem+json"
        assert post(port, {"question": " "}) == (problem, 400)
        assert post(port, {"question": "Who?", "passages": -1}) == (problem, 400)
        assert post(port, {"question": "Who?"}, host="example.com") == (problem, 421)
        assert post(port, {"question": "Who?"}, origin="https://example.com") == (problem, 403)
        for book in (folder / "shard-0001" / "books").glob("*.esi"):
            os.truncate(book, 1000)
        assert post(port, {"question": "Who?"}) == (problem, 503)


@pytest.mark.slow
def test_the_commands(books, shelf, tiny_model, tmp_path):
    """Each in a process, with a cluster of its own."""
    command, out = [sys.executable, "-m", "mamba_ssm.cli.main", "library"], os.fspath(tmp_path / "library")
    (tmp_path / "empty.txt").write_bytes(b"")
    read = [*command, "read", books[0].parent, tmp_path / "empty.txt", "--out", out, "--model", tiny_model]
    for new, more in ((True, ["--shards", "2", "--workers", "2"]), (False, [])):
        done = subprocess.run([*read, *more], capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stdout) == (1, "")
        assert sum(line.startswith(str(books[0].parent)) for line in done.stderr.splitlines()) == len(books)
        assert sum(line.endswith(", read before") for line in done.stderr.splitlines()) == (0 if new else len(books))
        assert len([line for line in done.stderr.splitlines() if line.startswith("mamba-esi: ")]) == 1
    port = free_port()
    serve = [*command, "serve", out, "--port", str(port), "--model", tiny_model]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("listening on" in line for line in process.stderr)
        assert post(port, {"question": QUESTIONS[0]})[1]["answer"] == shelf.ask(QUESTIONS[0]).text
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGTERM
