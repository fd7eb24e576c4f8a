"""``mamba-esi shelf`` as people and programs call it."""

import json

import pytest
from typer.testing import CliRunner

from mamba_ssm.cli.main import app

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBA_ESI_SHELF", str(tmp_path / "shelf"))
    return lambda *arguments: CliRunner().invoke(app, ["shelf", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path, book_text):
    path = tmp_path / "texts" / "deeper"
    path.mkdir(parents=True)
    (path / "garden.md").write_text(book_text, encoding="utf-8")
    (path.parent / "pelicans.txt").write_text("Pelicans dance under green moons.")
    (path.parent / "notes.bin").write_bytes(b"\x00\x01")
    return path.parent


def test_add_list_ask_remove(run, folder, tiny_model):
    done = run("add", folder, "--model", tiny_model)
    assert (done.exit_code, done.stdout) == (0, "")
    books = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [book["title"] for book in books] == ["garden", "pelicans"]
    shown = run("list").stdout.splitlines()
    assert all(book["id"] in line and book["title"] in line for book, line in zip(books, shown, strict=True))

    answer = json.loads(run("ask", QUESTION, "--json", "--model", tiny_model, "--passages", 3).stdout)
    assert list(answer) == ["question", "answer", "confidence", "evidence", "model", "book", "seconds"]
    assert len(answer["evidence"]) == 3
    for passage in answer["evidence"]:
        assert list(passage) == ["text", "start", "end", "page", "section", "score", "book"]
        assert passage["book"] in {book["id"] for book in books}
    shown = run("ask", "Who dances?", "--book", "pelicans", "--model", tiny_model).stdout
    assert " 1  pelicans · characters 0–" in shown

    assert run("remove", "garden").exit_code == 0
    assert [json.loads(line)["title"] for line in run("list", "--json").stdout.splitlines()] == ["pelicans"]
    assert (folder / "deeper" / "garden.md").exists()


def test_a_book_that_cannot_be_read_keeps_no_other_out(run, folder, tiny_model):
    (folder / "empty.txt").write_bytes(b"")
    done = run("add", folder, "--model", tiny_model)
    assert done.exit_code == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("mamba-esi: ")]) == 1
    assert "empty.txt" in done.stderr
    assert len(run("list").stdout.splitlines()) == 2


def test_the_option_says_where(run, folder, tiny_model, tmp_path):
    run("add", folder / "pelicans.txt", "--model", tiny_model, "--shelf", tmp_path / "other")
    assert run("list").stdout == ""
    assert "pelicans" in run("list", "--shelf", tmp_path / "other").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["ask", "Why?"], 1, "shelf add"),
        (["ask", "Why?", "--book", "none"], 1, "shelf list"),
        (["remove", "none"], 1, "shelf list"),
        (["ask", " "], 2, "empty"),
        (["add"], 2, "Missing"),
    ],
)
def test_what_cannot_be_done(run, tiny_model, arguments, status, says):
    model = ["--model", tiny_model] if arguments[0] in ("ask", "add") else []
    done = run(*arguments, *model)
    assert done.exit_code == status
    assert says in done.stderr
    assert done.stdout == ""


def test_a_folder_without_books(run, tmp_path, tiny_model):
    (tmp_path / "bare").mkdir()
    done = run("add", tmp_path / "bare", "--model", tiny_model)
    assert done.exit_code == 1
    assert "no books in it" in done.stderr
