"""`mamba-esi serve`, as a process."""

import functools
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

COMMAND = [sys.executable, "-m", "mamba_ssm.cli.main", "serve"]


def start(*arguments, **options):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_told_to_stop(tiny_model, book_path, number):
    # A shell that runs the tests in the background may have told its children to ignore SIGINT.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    options = ("--model", tiny_model, "--port", 0, "--api-key", "secret")
    with start(book_path, *options, preexec_fn=heed) as process:
        try:
            url = re.fullmatch(r"mamba-esi: listening on (http://127\.0\.0\.1:\d+)\n", process.stderr.readline())[1]
            assert httpx.get(f"{url}/healthz").status_code == 200
            assert httpx.get(f"{url}/v1/models").status_code == 401
            with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=60) as http:
                model = http.get("/v1/models").json()["data"][0]["id"]
                body = {"model": model, "messages": [{"role": "user", "content": "Who planted trees?"}]}
                assert len(http.post("/v1/chat/completions", json=body).json()["mamba_esi"]["evidence"]) == 8
            process.send_signal(number)
            assert process.wait(20) in (130, 143, -number)
            assert process.stderr.read() == ""
        finally:
            process.kill()


def fails(process):
    """Its one line of an error that the user can mend."""
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith("mamba-esi: ")
    assert error.count("\n") == 1
    return error


def test_an_address_that_is_taken(tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        error = fails(start("--model", tiny_model, "--port", other.getsockname()[1]))
    assert "give another --host or --port" in error


def test_without_the_web_framework_it_names_the_extra():
    program = "import sys; sys.modules['fastapi'] = None; from mamba_ssm.cli.main import app; app()"
    process = subprocess.Popen([sys.executable, "-c", program, "serve"], stderr=subprocess.PIPE, text=True)
    assert 'pip install "mamba-esi[serve]"' in fails(process)
