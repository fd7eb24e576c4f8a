"""A chat by a pipe, and in a terminal."""

import os
import re
import select
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from mamba_ssm.cli.main import app

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"
COMMAND = [sys.executable, "-m", "mamba_ssm.cli.main", "chat"]
PROMPT = "\x1b[?2004h"  # the terminal is told that a line may be pasted


@pytest.fixture(scope="module")
def saved(book_path, tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "garden.esi"
    done = CliRunner().invoke(app, ["read", str(book_path), "-o", str(path), "--model", tiny_model])
    assert done.exit_code == 0
    return path


def piped(lines, *arguments):
    done = CliRunner().invoke(app, ["chat", *map(str, arguments)], input="\n".join(lines) + "\n")
    return done.exit_code, done.stdout, done.stderr


def test_a_conversation_by_a_pipe(saved, tiny_model, book_text):
    code, out, err = piped(
        ["/help", QUESTION, "", "And who else?", "/open 2", "/books", "/quit", "Never asked?"],
        *(saved, "--model", tiny_model),
    )
    assert (code, err) == (0, "")
    assert out.startswith("/open N")
    assert f"> {QUESTION}" in out
    assert "searched with: Who planted 42 trees" in " ".join(out.split())
    assert out.count("confidence") == 2
    assert len(re.findall(r"^ [1-3]  Chapter [1-8] · characters", out, re.M)) == 6
    opened = out[out.rindex("· characters") :]
    assert len(opened) > 1000  # far more than a passage
    assert f"{len(book_text):,} characters" in opened
    assert "Never" not in out


def test_what_was_said_is_saved(saved, tiny_model, tmp_path):
    path = tmp_path / "said.md"
    code, _, err = piped([QUESTION, f"/save {path}"], saved, "--model", tiny_model)
    assert (code, err) == (0, "")
    assert path.read_text(encoding="utf-8").startswith(f"## {QUESTION}\n")
    assert os.listdir(tmp_path) == ["said.md"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nonsense", "no command /nonsense: /help lists them"),
        ("/open 1", "nothing was asked yet"),
        ("/save", "the name of a file"),
        ("/save nowhere/said.md", "cannot be written"),
        ("word " * 2000, "1 to 512 tokens"),
    ],
)
def test_mistakes_do_not_end_it(saved, tiny_model, line, says):
    code, out, err = piped([line, "Who?"], saved, "--model", tiny_model)
    assert code == 0
    assert says in err
    assert err.count("\n") == 1
    assert "> Who?" in out


@pytest.mark.parametrize("number", ["0", "4", "-1", "x", "", "²"])
def test_passages_that_are_not_there(saved, tiny_model, number):
    _, _, err = piped(["Who?", f"/open {number}"], saved, "--model", tiny_model)
    assert "1 to 3" in err


def test_several_books(saved, book_path, tiny_model, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Nothing here is about gardeners. " * 40)
    code, out, _ = piped([QUESTION, " /open is a question here", "/books"], saved, other, "--model", tiny_model)
    assert code == 0
    assert out.count("confidence") == 4
    assert out.count("passages of") == 2
    assert f"{other}: " in out.replace("\n", "")


def test_a_book_that_is_not_there(tiny_model):
    code, out, err = piped(["Who?"], "missing.txt", "--model", tiny_model)
    assert (code, out) == (1, "")
    assert err == "mamba-esi: missing.txt: no such file; check the path\n"


@pytest.mark.skipif(os.name != "posix", reason="terminals are opened otherwise elsewhere")
def test_a_conversation_in_a_terminal(saved, tiny_model, tmp_path):
    """History, completion and both ways to end, as a person types them."""
    pytest.importorskip("prompt_toolkit")
    import pty

    ours, theirs = pty.openpty()
    command = [*COMMAND, str(saved), "--model", tiny_model]
    environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            assert "/help lists" in _until(ours, PROMPT)
            os.write(ours, b"Who planted roses near the lake?\r")
            assert "confidence" in _until(ours, PROMPT)
            os.write(ours, b"\x1b[A")  # the line before
            _until(ours, "near the lake?")
            os.write(ours, b"\x03")  # given up
            _until(ours, PROMPT)
            os.write(ours, b"/boo\t")
            _until(ours, "ks")  # completed
            os.write(ours, b"\r")
            assert "characters" in _until(ours, PROMPT)
            os.write(ours, f"/save {tmp_path}/said.md\r".encode())
            _until(ours, PROMPT)
            assert (tmp_path / "said.md").read_text(encoding="utf-8").startswith("## Who planted roses")
            os.write(ours, b"\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
    os.close(ours)


def _until(terminal, wanted):
    """What the terminal shows until this is seen."""
    seen, end = "", time.monotonic() + 60
    while wanted not in seen:
        assert select.select([terminal], [], [], max(end - time.monotonic(), 0))[0], f"no {wanted!r} in {seen!r}"
        seen += os.read(terminal, 1 << 16).decode("utf-8", "replace")
    return seen


def test_a_terminal_without_prompt_toolkit_names_the_extra(saved, tiny_model, monkeypatch):
    from mamba_ssm.cli.chat import _terminal
    from mamba_ssm.errors import MambaESIError

    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.delitem(sys.modules, "mamba_ssm.cli.prompt", raising=False)
    with pytest.raises(MambaESIError, match=r"mamba-esi\[chat\]"):
        _terminal()
