"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mamba_ssm.server import problems
from mamba_ssm.server.service import gone

DONE = b"data: [DONE]\n\n"
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each event
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
STREAMED: dict[str, Any] = {"content": {"text/event-stream": {"schema": _EVENT}}}
"""What OpenAPI says of a response of events."""


def chunk(
    index: int, delta: dict[str, str], finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A choice, in a chunk of a chat completion that is streamed."""
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}


def event(data: dict[str, Any]) -> bytes:
    return f"data: {_ENCODER.encode(data)}\n\n".encode()


class EventStream(StreamingResponse):
    """Events as they are made. Whoever makes them is closed at the end, also where the client went away."""

    def __init__(self, path: str, made: AsyncGenerator[dict[str, Any], None]) -> None:
        self._made = made
        super().__init__(_events(path, made), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # One task that waits for the client to go: Starlette's group of tasks takes as long as some events do.
        leaving = asyncio.ensure_future(gone(receive))
        leaving.add_done_callback(partial(_stop, asyncio.current_task()))
        try:
            await self.stream_response(send)
        except asyncio.CancelledError:
            if not leaving.done():
                raise
        finally:
            leaving.cancel()
            await self._made.aclose()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self.body_iterator:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": DONE})


def _stop(sending: asyncio.Task[Any] | None, leaving: asyncio.Future[None]) -> None:
    if sending is not None and not leaving.cancelled():
        sending.cancel()


async def _events(path: str, made: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async for data in made:
            yield event(data)
    except Exception as error:  # noqa: BLE001  the status is sent: a client reads it here, and the log has the rest
        yield event(problems.of(error).body(path))
