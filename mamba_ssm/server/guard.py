"""What every request passes before it reaches a route: its name, who may ask, and how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mamba_ssm.server.metrics import Metrics
from mamba_ssm.server.problems import Problem, of
from mamba_ssm.server.settings import Settings

REQUEST_ID = "x-request-id"
OPEN = ("/healthz", "/")  # asked for without a key, as is the page's folder: the page asks for the key
PAGE = "/room/"
UPLOADS = "/v1/files"
BODY_SECONDS = 30.0  # between two parts of a body
_PLAIN = re.compile(r"[\x21-\x7e]{1,128}")


class Guard:
    """ASGI middleware, the outermost: refuses other hosts and origins, wrong keys and large bodies; counts requests."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics | None = None) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        headers = Headers(scope=scope)
        name = headers.get(REQUEST_ID, "")
        if not _PLAIN.fullmatch(name):
            name = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        try:
            problem = refuse(scope["path"], headers, self.settings)
            if problem is not None:
                await problem.response(scope["path"])(scope, receive, named)
            else:
                await self.app(scope, limited(receive, _largest(scope["path"], self.settings)), named)
        except Exception as error:
            if status:
                raise
            await of(error).response(scope["path"])(scope, receive, named)
        finally:
            if self.metrics is not None:
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, scope["method"], status).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - started)


def refuse(path: str, headers: Headers, settings: Settings) -> Problem | None:
    """Why a request must not reach a route; None where it may."""
    host = headers.get("host", "")
    if is_loopback(settings.host) and not _is_own(host, settings.host):
        # A page on the web can have its own name resolved to this machine, and is then of "the same origin".
        return Problem(421, f"this server listens on {settings.host} only, and is not called {host!r}")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return Problem(403, "requests from pages of another origin are refused", code="wrong_origin")
    if settings.api_key is not None and path not in OPEN and not path.startswith(PAGE):
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Bytes as they came: compare_digest takes no other characters than ASCII in a str.
        right = hmac.compare_digest(key.strip().encode("latin-1"), settings.api_key.encode())
        if scheme.lower() != "bearer" or not right:
            challenge = {"WWW-Authenticate": "Bearer"}
            detail = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
            return Problem(401, detail, code="invalid_api_key", headers=challenge)
    length = headers.get("content-length", "0")
    largest = _largest(path, settings)
    if length.isascii() and length.isdigit() and int(length) > largest:
        return _too_large(largest)
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_own(header: str, listening: str) -> bool:
    name = re.sub(r":\d*$", "", header).strip("[]").lower()
    return name in ("localhost", "127.0.0.1", "::1", listening.lower())


def _largest(path: str, settings: Settings) -> int:
    return settings.max_upload if path == UPLOADS else settings.max_body


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the request's body is too large: at most {limit:,} bytes", code="too_large")


def limited(receive: Receive, limit: int) -> Receive:
    """receive(), for bodies without a length in their head, or that never end."""
    seen, ended = 0, False

    async def counted() -> Message:
        nonlocal seen, ended
        if ended:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, "the request's body did not come") from None
        seen += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if seen > limit:
            raise HTTPException(413, _too_large(limit).detail)
        return message

    return counted
