"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mamba_ssm.server import problems

DONE = "data: [DONE]\n\n"
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each event
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
STREAMED: dict[str, Any] = {"content": {"text/event-stream": {"schema": _EVENT}}}
"""What OpenAPI says of a response of events."""


def chunk(
    index: int, delta: dict[str, str], finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A choice, in a chunk of a chat completion that is streamed."""
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}


def event(data: dict[str, Any]) -> str:
    return f"data: {_ENCODER.encode(data)}\n\n"


class EventStream(StreamingResponse):
    """Events as they are made. Whoever makes them is closed at the end, also where the client went away."""

    def __init__(self, path: str, made: AsyncGenerator[dict[str, Any], None]) -> None:
        self._made = made
        super().__init__(_events(path, made), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._made.aclose()


async def _events(path: str, made: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
    try:
        async for data in made:
            yield event(data)
    except Exception as error:  # noqa: BLE001  the status is sent: a client reads it here, and the log has the rest
        yield event(problems.of(error).body(path))
    yield DONE
