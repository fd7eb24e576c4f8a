"""The search streams, the judge judges, and whole runs report."""

import json
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recall import run
from recall.predict import Prediction, predict
from recall.search import SEARCHES, ModelSearch

from mamba_ssm.book import Engine
from mamba_ssm.training.recall.example import Example, Piece
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.recall.haystack import Haystack
from mamba_ssm.training.recall.tasks import TASKS
from mamba_ssm.training.recall.words import Words


@pytest.fixture(scope="module")
def default():
    return Engine.load(device="cpu")


PARAGRAPHS = [f"Paragraph {i} speaks of {i * 7} trees. It ends." for i in range(200)]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(PARAGRAPHS))
    return path


def lay(engine, task, length, seed=0):
    example = TASKS[task](Words(random.Random(seed), "test"))
    return Haystack(Filler.of_paragraphs(PARAGRAPHS, engine.tokenizer), example.pieces, length, seed), example


@pytest.mark.parametrize("length", [200, 3000])
def test_the_model_s_windows_are_the_stream_s_whatever_the_blocks(tiny_model, length, monkeypatch):
    engine = Engine.load(tiny_model, "cpu")
    haystack, example = lay(engine, "single_number", length)
    questions = [example.question, "Which sky is blue?"]
    found = ModelSearch(engine, haystack)(questions, 32)
    margin, width = engine.config.margin, engine.config.window + 2 * engine.config.margin
    text = np.concatenate(list(haystack.blocks(64)))
    places = (each.flatten().tolist() for each in (found.starts, found.read_from))
    for start, begin, window in zip(*places, found.ids.flatten(0, 1).tolist(), strict=True):
        assert begin == (start - margin if start >= 0 else -1)
        read = text[max(begin, 0) : start + width - margin].tolist() if start >= 0 else []
        missing = max(-begin, 0) if start >= 0 else 0
        assert window == [*[0] * missing, *read, *[0] * (width - len(read) - missing)]
    monkeypatch.setattr("mamba_ssm.book.engine.SEGMENTS", {"cpu": 1})
    again = ModelSearch(engine, haystack)(questions, 32)
    assert (again.starts == found.starts).all()
    torch.testing.assert_close(again.scores, found.scores)


@pytest.mark.parametrize("kind", ["model", "bm25"])
def test_the_default_model_finds_and_says_a_needle(default, kind):
    if kind == "bm25":
        pytest.importorskip("bm25s")
        pytest.importorskip("Stemmer")
    right = 0
    for seed in range(5):
        haystack, example = lay(default, "single_number", 2048, seed)
        (prediction,) = predict(default, [example.question], False, SEARCHES[kind](default, haystack))
        trial = run.judge(haystack, example, prediction, default.config.window)
        assert trial["recall"]["@32"] == 1.0
        right += trial["right"]
    assert right >= 3


def test_several_answers_are_distinct_and_asking_together_changes_nothing(default):
    haystack, example = lay(default, "multi_value", 1024)
    search = ModelSearch(default, haystack)
    alone, together = (predict(default, [example.question] * n, True, search) for n in (1, 3))
    assert len(set(alone[0].answers)) == len(alone[0].answers)
    assert [prediction.answers for prediction in together] == [alone[0].answers] * 3


def test_answers_in_a_text_s_first_words_and_side_by_side_are_named(default):
    right = 0
    for seed in range(5):
        words = Words(random.Random(seed), "train")  # the others are for reports alone
        example = TASKS["multi_value"](words)
        pieces = [replace(piece, depth=depth) for piece, depth in zip(example.pieces, (0, 0, 0.7, 0.7), strict=True)]
        haystack = Haystack(Filler.of_paragraphs(PARAGRAPHS, default.tokenizer), pieces, 2048, seed)
        (prediction,) = predict(default, [example.question], True, ModelSearch(default, haystack))
        right += set(prediction.answers) == set(example.answers)
    assert right >= 4


def test_right_is_exactly_all_answers_and_recall_counts_whole_spans():
    pieces = (Piece("It is red.", 0.1, "red"), Piece("It is blue.", 0.5, "blue"), Piece("No.", 0.9, gold=False))
    example = Example("two", pieces, "What is it?", ("red", "blue"))
    haystack = SimpleNamespace(length=1000, gold=lambda _: [(100, 103), (500, 503)])

    def trial(answers, windows):
        return run.judge(haystack, example, Prediction(answers, windows), 64)

    both = trial(["Blue.", "the red"], [40, 460, 440])
    assert both["right"]
    assert both["recall"] == {"@1": 0.5, "@8": 1.0, "@32": 1.0}  # 40 + 64 holds 103, and 441 to 503 would not
    assert trial(["red"], [41])["named"] == 0.5
    assert trial(["red"], [41])["string_match"] == 0.5
    assert trial(["red paint", "a dark blue"], [])["string_match"] == 1.0
    assert trial(["red paint", "a dark blue"], [])["named"] == 0.0
    assert not trial(["red"], [41])["right"]
    assert not trial(["red", "blue", "green"], [])["right"]
    assert trial([], [101, 440 - 1])["recall"]["@32"] == 0.0


def start(monkeypatch, book, folder, *more):
    out = folder / "recall.json"
    arguments = ["--device", "cpu", "--filler", str(book), "--cache", str(folder / "cache"), "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    monkeypatch.setattr("common.RESAMPLES", 100)
    assert run.main() == 0
    result = json.loads(out.read_text())
    assert result["complete"] is True
    return result, [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


def test_a_run_of_the_default_model_reports_every_task(monkeypatch, book, tmp_path):
    result, trials = start(monkeypatch, book, tmp_path, "--lengths", "1536", "--n", "2")
    assert [row["task"] for row in result["rows"]] == list(TASKS)
    for row in result["rows"]:
        assert row["trials"] == 2
        assert row["tokens"] == 2 * 1536
        assert row["shared_haystack"] is False
        assert 0 <= row["accuracy"]["interval_95"][0] <= row["accuracy"]["value"] <= 1
        assert set(row["recall"]) == {"@1", "@8", "@32"}
        assert row["peak_bytes"] > 1e6
    assert len(trials) == 2 * len(TASKS)
    assert result["model"]["name"] == "default"


def test_one_haystack_serves_all_examples_where_they_can_share(tiny_model, monkeypatch, book, tmp_path):
    more = [
        "--model",
        tiny_model,
        "--lengths",
        "6000",
        "--n",
        "5",
        "--share-haystack",
        "--haystacks",
        "noise",
        "needles",
    ]
    result, trials = start(monkeypatch, book, tmp_path, *more, "--tasks", "single_word", "chapters", "qa1")
    shared = {row["task"]: (row["shared_haystack"], row["tokens"]) for row in result["rows"]}
    assert shared == {"single_word": (True, 6000), "chapters": (True, 6000), "qa1": (False, 30_000)}
    assert [row["haystack"] for row in result["rows"]] == ["noise"] * 3 + ["needles"] * 3
    assert len({trial["question"] for trial in trials[:5]}) == 5


def test_a_run_with_bm25(tiny_model, monkeypatch, book, tmp_path):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    more = ["--model", tiny_model, "--lengths", "1200", "--n", "2", "--search", "bm25", "--tasks", "single_word"]
    (row,) = start(monkeypatch, book, tmp_path, *more)[0]["rows"]
    assert row["recall"]["@32"]["value"] == 1.0
