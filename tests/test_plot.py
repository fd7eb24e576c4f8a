"""Pictures of a book."""

import os
import sys

import pytest
from typer.testing import CliRunner

from mamba_ssm.cli.main import app

QUESTION = "Who planted $42 trees near Zürich in $chapter 6?"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("A.PDF", b"%PDF")])
def test_a_picture_beside_the_answer(book_path, tiny_model, tmp_path, name, begins):
    pytest.importorskip("matplotlib")
    result = run("ask", book_path, QUESTION, "--model", tiny_model, "--plot", tmp_path / name)
    assert result.exit_code == 0, result.stderr
    assert "confidence" in result.stdout
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_what_cannot_be_drawn(book_path, tiny_model, tmp_path, monkeypatch):
    model = ("--model", tiny_model)
    for path, says in ((tmp_path / "a.doc", ".svg"), (tmp_path / "nowhere" / "a.png", "cannot be written")):
        result = run("ask", book_path, QUESTION, *model, "--plot", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert says in result.stderr
    assert run("ask", book_path, QUESTION, *model, "--no-esi", "--plot", tmp_path / "a.png").exit_code == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("ask", book_path, QUESTION, *model, "--plot", tmp_path / "a.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "mamba-esi[plots]" in result.stderr
    assert os.listdir(tmp_path) == []
