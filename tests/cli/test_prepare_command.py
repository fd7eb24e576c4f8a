"""The command ``mamba-esi train prepare``."""

import json
import shutil

from test_cli import one_line_error, run

from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.corpus import Corpus


def test_books_and_lines_become_a_corpus_of_the_models_tokens(plain_model, book_path, book_text, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(100)))
    arguments = ["train", "prepare", book_path, lines, "--model", plain_model, "--field", "body"]
    result = run(*arguments, "--out", tmp_path / "corpus")
    assert result.exit_code == 0
    assert result.stdout == ""
    corpus = Corpus.open(tmp_path / "corpus")
    train, held_out = corpus.split("train"), corpus.split("held_out")
    assert f"{train.tokens:,} tokens of 99 documents to train on, {held_out.tokens:,} held out" in result.stderr
    tokenizer = Tokenizer.from_folder(plain_model)
    lengths = [len(tokenizer.encode(text).ids) + 1 for text in [book_text, *(f"text {i}" for i in range(100))]]
    assert corpus.tokens == sum(lengths)
    assert len(held_out.starts) == 1 + 2
    # A folder with no more than a tokenizer will do, and the same again is not written again.
    alone = tmp_path / "tokenizer"
    alone.mkdir()
    shutil.copy(f"{plain_model}/tokenizer.json", alone)
    arguments[5] = alone
    assert run(*arguments, "--out", tmp_path / "corpus").stderr == result.stderr
    said = one_line_error(run("train", "prepare", lines, "--field", "body", "--out", tmp_path / "corpus"))
    assert "other sources" in said


def test_a_line_that_is_none_ends_with_one_line(tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "good"}\n{"text"}\n')
    assert "lines.jsonl, line 2: " in one_line_error(run("train", "prepare", lines, "--out", tmp_path / "corpus"))
    assert [path.name for path in tmp_path.iterdir()] == ["lines.jsonl"]
