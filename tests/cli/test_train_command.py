"""The command ``mamba-esi train esi``, and ``--esi``, which uses what it wrote."""

import json
import shutil

import pytest
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


def train(model, questions, out, *more):
    return run("train", "esi", "--model", model, "--questions", questions, "--out", out, "--steps", 6, *more)


@pytest.fixture(scope="module")
def trained(tiny_model, questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "esi"
    result = train(tiny_model, questions, folder, "--batch", 4)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "1 left out (line 13): the book does not spell the answer" in result.stderr
    assert "training on 12 questions" in result.stderr
    assert f"--model {tiny_model} --esi {folder}" in result.stderr
    return folder


def test_what_it_wrote_answers(trained, tiny_model, book_path, tmp_path):
    assert sorted(path.name for path in trained.iterdir()) == ["esi.json", "esi.safetensors"]
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


def test_with_the_backbone_it_writes_a_checkpoint(tiny_model, questions, book_path, tmp_path):
    assert train(tiny_model, questions, tmp_path / "whole", "--batch", 4, "--with-backbone").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads(run("ask", book_path, QUESTION, "--json", "--model", tmp_path / "whole").stdout)["evidence"]


def test_the_default_models_data(tiny_model, tmp_path):
    """They are numbers of the default model's tokens, and nonsense to any other vocabulary."""
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    text = "A gardener planted trees near the old lake. " * 90
    articles = [Article("A", [Paragraph(text, [Question("q", "What was planted?", [(text.index("trees"), "trees")])])])]
    build_examples(articles, tokenizer).save(tmp_path / "train.safetensors")
    arguments = ["train", "esi", "--data", tmp_path, "--steps", 3, "--out", tmp_path / "out", "--model"]
    assert run(*arguments, tiny_model).exit_code == 0
    assert (tmp_path / "out" / "esi.json").is_file()

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    del vocabulary["model"]["merges"][-1]
    vocabulary["model"]["vocab"].pop(max(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get))
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    shutil.rmtree(tmp_path / "out")
    assert "in tokens of the default model" in one_line_error(run(*arguments, other))

    (tmp_path / "train.safetensors").write_bytes(b"nonsense")
    assert "prepare_data.py" in one_line_error(run(*arguments, tiny_model))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be(tiny_model, other_model, questions, trained, book_path, tmp_path):
    assert "not an empty folder" in one_line_error(train(tiny_model, questions, trained))
    assert "was trained for" in one_line_error(
        run("ask", book_path, QUESTION, "--model", other_model, "--esi", trained)
    )
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Who?"}\n')
    assert "bad.jsonl, line 1" in one_line_error(train(tiny_model, bad, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["esi"],
        ["esi", "--model", "M"],
        ["esi", "--model", "M", "--questions", "nowhere"],
        ["esi", "--model", "M", "--questions", "FILE", "--data", "."],
        ["esi", "--model", "M", "--questions", "FILE", "--steps", "0"],
        ["esi", "--model", "M", "--questions", "FILE", "--lr", "0"],
    ],
)
def test_a_wrong_command_line(questions, arguments):
    assert run("train", *(questions if argument == "FILE" else argument for argument in arguments)).exit_code == 2
