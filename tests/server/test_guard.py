"""Who may ask, how much, and what a refusal looks like."""

import asyncio
import json
import re
import socket
import time

import httpx
import pytest
from serving import serving

from mamba_ssm.server.app import create_app

COMPLETION = {"prompt": "The gardener", "max_tokens": 4096, "temperature": 0}


def problem(response, status):
    """A refusal in the form of RFC 9457."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    found = response.json()
    assert found["status"] == status
    assert found["type"] == "about:blank"
    assert found["title"]
    return found


def post(served, **options):
    return served.http.post("/v1/completions", json={"model": served.model, **COMPLETION, **options})


def events_of(served):
    """The lines of a stream."""
    body = {"model": served.model, **COMPLETION, "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body) as response:
        return [line for line in response.iter_lines() if line]


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def test_problems_carry_openai_s_error_under_v1_only(plain):
    found = problem(post(plain, n=0), 400)
    assert found["error"] == {
        "message": found["detail"],
        "type": "invalid_request_error",
        "param": "n",
        "code": None,
    }
    assert "error" not in problem(plain.http.get("/nowhere"), 404)
    response = plain.http.get("/v1/completions")
    problem(response, 405)
    assert response.headers["allow"] == "POST"
    problem(plain.http.post("/v1/completions", content=b"{", headers={"content-type": "application/json"}), 400)


def test_a_failure_that_nobody_foresaw_has_a_name_and_no_details(plain, engine, monkeypatch, caplog):
    with serving(engine) as served:
        monkeypatch.setattr(served.service, "check_model", lambda name: 1 / 0)
        found = problem(post(served), 500)
        assert "division" not in json.dumps(found)
        assert "ZeroDivisionError" in caplog.text


def test_a_failing_step_fails_its_requests_and_not_the_server(engine, monkeypatch, caplog):
    with serving(engine) as served:
        until(lambda: post(served, max_tokens=1).status_code == 200)
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "step", lambda *_: 1 / 0)
            problem(post(served), 500)
            with served.http.stream(
                "POST", "/v1/completions", json={"model": served.model, **COMPLETION, "stream": True}
            ) as r:
                events = [line for line in r.iter_lines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        assert events[-1] == "data: [DONE]"
        assert post(served, max_tokens=3).status_code == 200


def test_request_ids(plain):
    assert plain.http.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = [plain.http.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for bad in ("a" * 129, "has space", "naïve".encode()):
        given = plain.http.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_other_hosts_and_origins_are_refused(plain):
    port = httpx.URL(plain.url).port
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert plain.http.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        problem(plain.http.get("/v1/models", headers={"host": host}), 421)
    own = {"origin": plain.url}
    assert plain.http.get("/v1/models", headers=own).status_code == 200
    for origin in ("https://evil.example", "null", f"http://localhost:{port}", f"{plain.url}.evil.example"):
        problem(plain.http.get("/v1/models", headers={"origin": origin}), 403)
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        response = plain.http.options("/v1/completions", headers=preflight)
        assert response.status_code == 403
        assert not any(name.startswith("access-control") for name in response.headers)


def test_large_bodies_and_prompts_are_refused(engine):
    with serving(engine, max_body=5000, max_prompt=100) as served:
        assert "5,000" in problem(post(served, prompt="a " * 5000), 413)["detail"]
        parts = (b" " * 1000 for _ in range(100))  # chunked: no length in the head
        problem(served.http.post("/v1/completions", content=parts), 413)
        found = problem(post(served, prompt="gardener " * 200), 400)
        assert found["error"]["code"] == "context_length_exceeded"
        assert post(served, prompt="gardener " * 20, max_tokens=1).status_code == 200


def test_a_request_that_takes_too_long_ends(engine):
    with serving(engine, timeout=0.3) as served:
        problem(post(served), 504)
        with served.http.stream(
            "POST", "/v1/completions", json={"model": served.model, **COMPLETION, "stream": True}
        ) as r:
            events = [line for line in r.iter_lines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: served.service.worker.decoding == 0)
        assert post(served, max_tokens=3).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_the_slots_of_a_client_that_went_away_are_freed(engine, stream):
    with serving(engine, slots=2, max_tokens=10**6) as served:
        worker = served.service.worker
        body = json.dumps({"model": served.model, **COMPLETION, "max_tokens": 10**6, "n": 4, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port)) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            until(lambda: worker.decoding == 2 and worker.waiting == 2)
        until(lambda: worker.decoding == 0 and worker.waiting == 0)


def test_stopping_the_server_ends_what_is_open(engine):
    with serving(engine, max_tokens=10**6) as served:
        body = {"model": served.model, **COMPLETION, "max_tokens": 10**6, "stream": True}
        served.http.send(served.http.build_request("POST", "/v1/completions", json=body), stream=True)
        until(lambda: served.service.worker.decoding == 1)


def test_metrics(engine):
    with serving(engine) as served:
        post(served, max_tokens=7)
        served.http.get("/nowhere/1")
        text = served.http.get("/metrics").text
        assert 'mamba_esi_requests_total{method="POST",route="/v1/completions",status="200"} 1.0' in text
        assert 'mamba_esi_requests_total{method="GET",route="other",status="404"} 1.0' in text
        assert "mamba_esi_generated_tokens_total 7.0" in text
        assert "mamba_esi_decoding 0.0" in text


def test_a_model_that_cannot_start_stops_the_server(engine, monkeypatch):
    app = create_app(engine)
    monkeypatch.setattr(engine.model, "allocate_inference_cache", lambda *_: 1 / 0)

    async def start():
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(start())
