"""The command as people and programs call it: what it prints, where, and its exit status."""

import functools
import getpass
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mamba_ssm
from mamba_ssm.cli.doctor import faster
from mamba_ssm.cli.main import app
from mamba_ssm.ops import backend

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"
COMMAND = [sys.executable, "-m", "mamba_ssm.cli.main"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line_error(result):
    """The line of a failure that the user can mend."""
    assert result.exit_code == 1
    assert result.stdout_bytes.strip() == b""
    line, nothing = result.stderr.split("\n")
    assert nothing == ""
    assert line.startswith("mamba-esi: ")
    return line


@pytest.fixture(scope="module")
def saved(book_path, tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "garden.esi"
    assert run("read", book_path, "-o", path, "--model", tiny_model).exit_code == 0
    return path


def test_json_has_the_documented_shape(book_path, tiny_model):
    result = run("ask", book_path, QUESTION, "--json", "--model", tiny_model)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    answer = json.loads(line)
    assert list(answer) == ["question", "answer", "confidence", "evidence", "model", "book", "seconds"]
    assert answer["question"] == QUESTION
    assert answer["model"] == tiny_model
    assert list(answer["book"]) == ["path", "sha256", "tokens", "characters"]
    assert re.fullmatch("[0-9a-f]{64}", answer["book"]["sha256"])
    assert list(answer["seconds"]) == ["read", "search", "answer"]
    assert len(answer["evidence"]) == 8
    for passage in answer["evidence"]:
        assert list(passage) == ["text", "start", "end", "page", "section", "score"]
    text = run("text", book_path).stdout_bytes.decode()
    assert len(text) == answer["book"]["characters"]
    assert all(p["text"] == text[p["start"] : p["end"]] for p in answer["evidence"])


def test_pages_of_a_pdf(tmp_path, tiny_model, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "text")
    from make_books import pdf_bytes

    path = tmp_path / "garden.pdf"
    pages = [[f"Gardener {line} of page {page} waters {line} roses." for line in range(12)] for page in range(1, 9)]
    path.write_bytes(pdf_bytes(pages, outline=[("8.2 Roses", 2)], labels="0 << /S /r >> 2 << /S /D /St 187 >>"))
    text = run("text", path).stdout_bytes.decode()
    answer = json.loads(run("ask", path, "Who waters roses?", "--json", "--model", tiny_model).stdout)
    for passage in answer["evidence"]:
        assert passage["text"] == text[passage["start"] : passage["end"]]
        line = text[: passage["start"] + 1].count("\n")
        assert passage["page"] == line // 12 + 1
        assert passage["section"] == ("8.2 Roses" if line >= 24 else None)
    cited = ["p. i", "p. ii", *(f"§8.2 Roses, p. {printed}" for printed in range(187, 193))]
    saved = tmp_path / "garden.esi"
    run("read", path, "-o", saved, "--model", tiny_model)
    for book in (path, saved):
        shown = run("ask", book, "Who waters roses?", "--model", tiny_model).stdout
        assert all(f" {cited[passage['page'] - 1]} · characters" in shown for passage in answer["evidence"])


def test_a_folder_is_a_book(tmp_path, tiny_model):
    for chapter in (2, 10):
        (tmp_path / f"chapter {chapter}.md").write_text(f"Gardener {chapter} waters roses.\n", encoding="utf-8")
    text = run("text", tmp_path).stdout_bytes.decode()
    assert text.split("\n") == ["Gardener 2 waters roses.", "", "Gardener 10 waters roses.", "", ""]
    answers = [json.loads(run("ask", tmp_path, QUESTION, "--json", "--model", tiny_model).stdout)]
    (tmp_path / "chapter 10.md").rename(tmp_path / "chapter 11.md")
    answers.append(json.loads(run("ask", tmp_path, QUESTION, "--json", "--model", tiny_model).stdout))
    passage = answers[0]["evidence"][0]
    assert passage["text"] == text[passage["start"] : passage["end"]]
    assert passage["section"] == "chapter 2"
    assert answers[0]["book"]["sha256"] != answers[1]["book"]["sha256"]


def test_text_is_the_books_own(book_path, book_text):
    assert run("text", book_path).stdout_bytes.decode() == book_text


def test_a_saved_book_answers_alike(book_path, saved, tiny_model):
    answers = []
    for book in (book_path, saved):
        answer = json.loads(run("ask", book, QUESTION, "--json", "--model", tiny_model, "--passages", 3).stdout)
        assert len(answer["evidence"]) == 3
        del answer["seconds"]
        answers.append(answer)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["plain", "json"])
def test_questions_from_a_file(saved, tiny_model, tmp_path, kind):
    questions = ["Who planted 42 trees?", "Where is the naïve gardener?", "What?"]
    lines = questions if kind == "plain" else [json.dumps({"id": i, "question": q}) for i, q in enumerate(questions)]
    path = tmp_path / "questions"
    path.write_text("\n\n".join(lines) + "\n\n", encoding="utf-8")
    result = run("ask", saved, "--questions", path, "--json", "--model", tiny_model)
    assert [json.loads(line)["question"] for line in result.stdout.splitlines()] == questions


def test_what_people_see(book_path, tiny_model):
    result = run("ask", book_path, QUESTION, "--model", tiny_model, "--passages", 2)
    assert result.exit_code == 0
    assert result.stdout.startswith(QUESTION)
    assert "confidence" in result.stdout
    assert len(re.findall("Chapter [1-8] · characters", result.stdout)) == 2
    line = result.stdout.splitlines()[-1].strip()
    assert re.fullmatch("[·▒█]{60}", line)
    assert line.count("█") == 1


def test_a_book_cannot_steer_the_terminal(tmp_path, tiny_model):
    path = tmp_path / "escape.txt"
    path.write_text("The gardener \x1b[31mwrote\x1b]0;title\x07 in red. " + "Then all was quiet again. " * 10)
    result = run("ask", path, "What did the gardener write?", "--model", tiny_model)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout


def test_without_esi(book_path, tiny_model):
    result = run("ask", book_path, QUESTION, "--no-esi", "--json", "--model", tiny_model, "--max-new-tokens", 2)
    assert json.loads(result.stdout)["evidence"] == []


def test_doctor():
    text = run("doctor").stdout
    assert f"mamba-esi {mamba_ssm.__version__}" in text
    found = json.loads(run("doctor", "--json").stdout)
    assert found["mamba_esi"] == mamba_ssm.__version__
    ops = {choice["op"] for choice in found["backends"] if choice["device"] == "cpu"}
    assert ops == set(backend.OPS)
    for choice in found["backends"]:
        assert f"{choice['op']} on {choice['device']}: {choice['backend']}, {choice['reason']}\n" in text
        hint = choice["faster"] or "nothing, this is the fastest there is"
        assert re.search(rf"^what would make .+ faster on {choice['device']}: {re.escape(hint)}$", text, re.M)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_doctor_says_what_would_be_faster_than_what_is_asked_for(monkeypatch):
    monkeypatch.delenv("MAMBA_BACKEND", raising=False)
    assert re.search("^what would make every op faster on cpu: .*GPU", run("doctor").stdout, re.M)
    monkeypatch.setenv("MAMBA_BACKEND", "reference")
    said = run("doctor").stdout
    assert "selective_scan on cpu: reference, asked for by name\n" in said
    assert "what would make every op faster on cpu: unset MAMBA_BACKEND, which asks for reference" in said


def test_doctor_repeats_what_a_slow_path_lacks():
    choice = backend.Choice("layer_norm", "cuda", "reference", "there is no Triton: pip install triton", slow=True)
    assert faster(choice) == choice.reason
    assert faster(choice._replace(slow=False)) is None


def install(folder, name, **files):
    """What an installer leaves of a distribution: its metadata, with the list of its files or of its packages."""
    info = folder / f"{name}-1.2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2.0\n")
    for file, text in files.items():
        (info / file.replace("__", ".")).write_text(text)


def test_doctor_names_whoever_shares_the_folders(tmp_path, monkeypatch):
    before = json.loads(run("doctor", "--json").stdout)["conflicts"]
    install(tmp_path / "mine", "mamba_esi", RECORD="mamba_ssm/__init__.py,,\ncausal_conv1d/__init__.py,,\n")
    install(tmp_path / "a", "mamba_ssm", RECORD="mamba_ssm/__init__.py,,\nselective_scan_cuda.so,,\n")
    install(tmp_path / "b", "causal_conv1d", top_level__txt="causal_conv1d\ncausal_conv1d_cuda\n")
    install(tmp_path / "c", "fork", RECORD="mamba_ssm/ops/x.py,,\ncausal_conv1d/x.py,,\n")
    install(tmp_path / "d", "bystander", RECORD="mamba_ssm_tools/__init__.py,,\n")
    for folder in tmp_path.iterdir():
        monkeypatch.syspath_prepend(folder)
    theirs = {"mamba-ssm": ["mamba_ssm"], "causal-conv1d": ["causal_conv1d"], "fork": ["mamba_ssm", "causal_conv1d"]}
    assert json.loads(run("doctor", "--json").stdout)["conflicts"] == before | theirs
    said = run("doctor").stdout
    assert "conflict: mamba-ssm owns mamba_ssm too" in said
    assert "conflict: fork owns mamba_ssm and causal_conv1d too" in said
    assert "pip uninstall causal-conv1d, then install mamba-esi again" in said
    assert "bystander" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["ask"],
        ["ask", "BOOK"],
        ["ask", "BOOK", " "],
        ["ask", "BOOK", "Why?", "--questions", "BOOK"],
        ["ask", "BOOK", "--questions", "nowhere"],
        ["ask", "BOOK", "Why?", "--top-k", "0"],
        ["ask", "BOOK", "Why?", "--passages", "-1"],
        ["ask", "BOOK", "Why?", "--device", "abacus"],
        ["read", "BOOK"],
        ["read", "BOOK", "-o", "book.txt"],
        ["read", "BOOK", "-o", "nowhere/book.esi"],
        ["read", "book.esi", "-o", "book.esi"],
        ["text", "book.esi"],
    ],
)
def test_a_wrong_command_line(book_path, arguments):
    result = run(*(str(book_path) if argument == "BOOK" else argument for argument in arguments))
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b"", "0 bytes"),
        ("blank.txt", b" \n ", "white space"),
        ("noise.bin", random.Random(0).randbytes(5000), "binary"),
        ("broken.pdf", b"%PDF-1.7 nothing", "PDF"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "text", "read"])
def test_a_book_that_cannot_be_read(tmp_path, tiny_model, command, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    model = ["--model", tiny_model]
    arguments = {"ask": [path, "Why?", *model], "text": [path], "read": [path, "-o", tmp_path / "out.esi", *model]}
    assert says in one_line_error(run(command, *arguments[command]))
    assert set(os.listdir(tmp_path)) <= {name}


@pytest.mark.parametrize("content", [b"\n\n", b"\xff\xfe", b'{"question": 3}', b'{"q": "Why?"}', b"{nonsense"])
def test_questions_that_cannot_be_read(book_path, tiny_model, tmp_path, content):
    path = tmp_path / "questions"
    path.write_bytes(content)
    one_line_error(run("ask", book_path, "--questions", path, "--model", tiny_model))


def test_models_and_saved_books_that_cannot_be_used(book_path, saved, other_model, tmp_path):
    (tmp_path / "broken.esi").write_bytes(saved.read_bytes()[:5000])
    assert "read the book again" in one_line_error(run("ask", tmp_path / "broken.esi", "Why?", "--model", other_model))
    assert "no checkpoint" in one_line_error(run("ask", book_path, "Why?", "--model", tmp_path))
    assert "another model" in one_line_error(run("ask", saved, "Why?", "--model", other_model))


def test_help_and_version_do_not_load_torch():
    code = (
        "import sys\nfrom mamba_ssm.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("ask", "read", "text", "doctor"):
        assert command in done.stdout
    assert run("--version").stdout == f"mamba-esi {mamba_ssm.__version__}\n"


def test_the_installed_command(book_path, tiny_model):
    command = [*COMMAND, "ask", str(book_path), QUESTION, "--json", "--model", tiny_model]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["question"] == QUESTION
    failed = subprocess.run([*COMMAND, "text", "missing.txt"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "mamba-esi: missing.txt: no such file; check the path\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes break otherwise elsewhere")
def test_a_reader_that_goes_away(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("A line of a long book.\n" * 100_000)
    done = subprocess.run(
        f"{' '.join(COMMAND)} text {path} | head -n 1", shell=True, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("A line of a long book.\n", "")


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise elsewhere")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stopping_leaves_nothing_half_written(book_text, tiny_model, tmp_path, number, status):
    path = tmp_path / "long.txt"
    path.write_text(book_text * 300, encoding="utf-8")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [*COMMAND, "read", str(path), "-o", str(tmp_path / "out.esi"), "--model", tiny_model]
    environment = os.environ | {"TMPDIR": str(temporary)}
    # A shell starts what it runs in the background with Ctrl-C ignored, and these tests may be run so.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        _wait_until_writing(process.pid, temporary)
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert sorted(os.listdir(tmp_path)) == ["long.txt", "tmp"]
    theirs = f"torchinductor_{getpass.getuser()}"  # PyTorch's own
    assert set(os.listdir(temporary)) <= {theirs}


def _wait_until_writing(pid, folder):
    """Until the process has a file open in the folder; where that can't be seen, some seconds."""
    for _ in range(600):
        time.sleep(0.1)
        if not os.path.isdir("/proc/self/fd"):
            time.sleep(5)
            return
        links = []
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            except OSError:
                continue
        if any(link.startswith(str(folder)) for link in links):
            return
    raise AssertionError("the command never wrote")
