"""One book on several ranks: to the last bit what one process finds, also where parts meet."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import ranks

from mamba_ssm.book import Engine, open_book, parallel
from mamba_ssm.book.find import Finder
from mamba_ssm.book.source import FileSource

EXAMPLES = Path(__file__).parents[1] / "examples"
SEGMENTS = 4  # of a block, so that a part of the example book has many borders
RUN = 3


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The beginning of the example book."""
    path = tmp_path_factory.mktemp("book") / "guide.md"
    path.write_text((EXAMPLES / "abs-guide.md").read_text("utf-8")[:40_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[2, 4])
def run(request, tmp_path_factory):
    with ranks(request.param, tmp_path_factory.mktemp("ranks")) as run:
        run(short_runs)
        yield run


@cache
def small_blocks():
    class Small(Engine):
        block_tokens = SEGMENTS * 192

    engine = Engine.load(device="cpu")
    return Small(engine.model, engine.tokenizer, engine.name)


def questions():
    lines = (EXAMPLES / "questions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def hits(finder):
    return [
        [(w.first, w.ids.tolist(), w.text, w.section, score, gain, matches.tolist()) for w, score, gain, matches in q]
        for q in finder.found()
    ]


def short_runs():
    parallel.RUN = RUN


def check_windows(path):
    """All windows of the book, so that those at every border are among them; returns how many blocks were read."""
    engine = small_blocks()
    queries = [engine.question(question).query for question in questions()[:4]]
    found = []
    for finder in (Finder(queries, 4000, engine), parallel.PartFinder(queries, 4000, engine, dist.group.WORLD)):
        given = list(FileSource(path, engine).blocks(None, finder.wants))
        for block in given:
            finder.push(*block)
        found.append(hits(finder))
    assert found[0] == found[1]
    assert [hit[0] for hit in sorted(found[0][0])] == list(range(0, 32 * len(found[0][0]), 32))
    return len(given)


def test_windows_and_scores_are_those_of_one_process(run, book):
    counts = run(check_windows, book)
    blocks = len(list(FileSource(book, small_blocks()).texts()))
    most = -(-blocks // (RUN * len(counts))) * (RUN + 2)
    assert max(counts) <= most < blocks


def answers(path, group=None):
    with open_book(path, small_blocks(), group=group) as book:
        return [{**answer.to_dict(), "seconds": None} for answer in book.ask_all(questions()[:2])]


def check_answers(path):
    together = answers(path, dist.group.WORLD)
    if dist.get_rank() == 0:
        assert together == answers(path)
    return together


@pytest.mark.parametrize("saved", [False, True])
def test_answers_are_those_of_one_process(run, book, tmp_path, saved):
    if saved:
        with open_book(book, small_blocks()) as whole:
            whole.save(book := tmp_path / "guide.esi")
    first, *others = run(check_answers, book)
    assert all(other == first for other in others)
