"""Errors over HTTP: problem details (RFC 9457), which under /v1 carry the object that OpenAI's clients look for."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mamba_ssm.errors import MambaESIError
from mamba_ssm.server.worker import Busy, Closed

log = logging.getLogger("mamba_esi.server")
MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(Exception):
    """A request that is refused, or fails, for a reason that whoever sent it should read.

    ``code`` and ``param`` are OpenAI's: a word for the reason, and the field that is wrong.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.code, self.param, self.headers = status, detail, code, param, headers

    def body(self, path: str) -> dict[str, Any]:
        """The problem, as JSON."""
        problem: dict[str, Any] = {
            "type": "about:blank",
            "title": _title(self.status),
            "status": self.status,
            "detail": self.detail,
        }
        if is_openai(path):
            kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
            problem["error"] = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return problem

    def response(self, path: str) -> JSONResponse:
        return JSONResponse(self.body(path), self.status, self.headers, MEDIA_TYPE)


def is_openai(path: str) -> bool:
    return path.startswith("/v1/")


def _title(status: int) -> str:
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase


def of(error: Exception) -> Problem:
    """What to tell of an error. One that nobody foresaw is logged, and not described."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Busy):
        return Problem(429, "too many requests are waiting: try again later", code="busy", headers=RETRY_AFTER)
    if isinstance(error, Closed):
        return Problem(503, "the server is going down: try again later", code="closed", headers=RETRY_AFTER)
    if isinstance(error, TimeoutError):
        return Problem(
            504, "it took too long: ask for less, or start the server with a longer --timeout", code="timeout"
        )
    if isinstance(error, MambaESIError):
        return Problem(400, str(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        detail = f"{'.'.join(place)}: {first['msg']}" if place else first["msg"]
        return Problem(400, detail, param=next(iter(place), None))
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    log.error("a request failed", exc_info=error)
    return Problem(500, "the server failed: its log says why")


def install(app: FastAPI) -> None:
    """Have all errors of an app answered as problems."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return of(error).response(request.url.path)

    for kind in (Problem, Busy, Closed, TimeoutError, MambaESIError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These errors, for the OpenAPI description of a route."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "error": {"type": "object"},
        },
    }
    return {status: {"description": _title(status), "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}
