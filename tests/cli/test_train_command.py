"""The commands ``mamba-esi train esi`` and ``train qa``, and ``--esi`` and ``--model``, which use what they wrote."""

import json
import shutil
import sys

import pytest

pytest.importorskip("accelerate")

from test_cli import one_line_error, run

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import build_examples
from mamba_ssm.training.squad import Article, Paragraph, Question

QUESTION = "Who planted trees in chapter 6?"


@pytest.fixture(scope="module")
def questions(book_path, tmp_path_factory):
    """Twelve questions about the book, beside it, and one that it does not answer."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    shutil.copy(book_path, path.parent / "garden.md")
    rows = [
        {"book": "garden.md", "question": f"How many trees by number {n} in chapter 7?", "answer": f"{n * 7} 🌱 trees"}
        for n in range(25, 37)
    ]
    rows.append({"book": "garden.md", "question": "Who?", "answer": "Nobody"})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def train(model, questions, out, *more, recipe="esi"):
    arguments = ["--model", model, "--questions", questions, "--out", out, "--steps", 3, "--batch", 4]
    return run("train", recipe, *arguments, "--device", "cpu", *more)


def last_line(result):
    """Of a run that failed, after the settings that it began with."""
    assert result.exit_code == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("mamba-esi: ")]
    assert said == result.stderr.splitlines()[-1:]
    return said[0]


@pytest.fixture(scope="module")
def trained(tiny_model, questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "esi"
    result = train(tiny_model, questions, folder)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "1 left out (line 13): the book does not spell the answer" in result.stderr
    assert "training on 12 questions" in result.stderr
    assert f"--model {tiny_model} --esi {folder}" in result.stderr
    return folder


def test_what_it_wrote_answers(trained, tiny_model, book_path, tmp_path):
    names = sorted(path.name for path in trained.iterdir())
    assert names == ["esi.json", "esi.safetensors", "language", "reader", "search"]
    model = ["--model", tiny_model, "--esi", trained]
    streamed = json.loads(run("ask", book_path, QUESTION, "--json", *model).stdout)
    assert run("read", book_path, "-o", tmp_path / "garden.esi", *model).exit_code == 0
    saved = json.loads(run("ask", tmp_path / "garden.esi", QUESTION, "--json", *model).stdout)
    assert saved["evidence"] == streamed["evidence"]
    without = json.loads(run("ask", book_path, QUESTION, "--json", "--model", tiny_model).stdout)
    assert [p["score"] for p in without["evidence"]] != [p["score"] for p in streamed["evidence"]]
    said = one_line_error(run("ask", tmp_path / "garden.esi", QUESTION, "--model", tiny_model))
    assert "another model" in said
    assert "--esi" in said


def test_end_to_end_it_writes_a_checkpoint(plain_model, questions, book_path, tmp_path):
    """Also of a checkpoint that had no ESI."""
    result = train(plain_model, questions, tmp_path / "whole", recipe="qa")
    assert result.exit_code == 0
    assert f"--model {tmp_path / 'whole'}`" in result.stderr
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["config.json", "language", "model.safetensors", "reader", "search", "tokenizer.json"]
    answer = json.loads(run("ask", book_path, QUESTION, "--json", "--model", tmp_path / "whole").stdout)
    assert answer["evidence"]
    assert answer["confidence"] is not None


def test_the_default_models_data(tiny_model, tmp_path):
    """They are numbers of the default model's tokens, and nonsense to any other vocabulary."""
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    text = "A gardener planted trees near the old lake. " * 90
    articles = [Article("A", [Paragraph(text, [Question("q", "What was planted?", [(text.index("trees"), "trees")])])])]
    build_examples(articles, tokenizer).save(tmp_path / "train.safetensors")
    arguments = ["train", "esi", "--data", tmp_path, "--steps", 3, "--out", tmp_path / "out", "--batch", 2, "--model"]
    assert run(*arguments, tiny_model).exit_code == 0
    assert (tmp_path / "out" / "esi.json").is_file()

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    del vocabulary["model"]["merges"][-1]
    vocabulary["model"]["vocab"].pop(max(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get))
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    shutil.rmtree(tmp_path / "out")
    assert "in tokens of the default model" in last_line(run(*arguments, other))

    (tmp_path / "train.safetensors").write_bytes(b"nonsense")
    assert "prepare_data.py" in last_line(run(*arguments, tiny_model))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be(tiny_model, other_model, questions, trained, book_path, tmp_path):
    assert "not an empty folder: give a new one with --out, or go on with --resume" in last_line(
        train(tiny_model, questions, trained)
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    said = last_line(train(tiny_model, questions, tmp_path / "taken", "--resume"))
    assert said.endswith("not an empty folder: give a new one with --out")
    assert "was trained for" in one_line_error(
        run("ask", book_path, QUESTION, "--model", other_model, "--esi", trained)
    )
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Who?"}\n')
    assert "bad.jsonl, line 1" in last_line(train(tiny_model, bad, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["esi"],
        ["esi", "--model", "M"],
        ["esi", "--model", "M", "--questions", "FILE", "--data", "."],
        ["esi", "--model", "M", "--questions", "FILE", "--steps", "0"],
        ["esi", "--model", "M", "--questions", "FILE", "--lr", "0"],
    ],
)
def test_a_wrong_command_line(questions, arguments):
    assert run("train", *(questions if argument == "FILE" else argument for argument in arguments)).exit_code == 2


@pytest.mark.parametrize("recipe", ["esi", "qa"])
def test_a_missing_package_names_the_extra(monkeypatch, recipe):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert 'needs accelerate: pip install "mamba-esi[train]"' in one_line_error(run("train", recipe, "--model", "M"))


def test_help_says_what_each_setting_means():
    result = run("train", "qa", "--help")
    assert result.exit_code == 0
    assert "--backbone_rate" in result.stdout
    assert "Questions of a step" in result.stdout
