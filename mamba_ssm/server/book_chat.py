"""Chat completions about a book: the last message of the user is the question."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import Request, Response

from mamba_ssm.server.problems import Problem
from mamba_ssm.server.schemas import ChatChoice, ChatCompletion, ChatMessage, ChatRequest, Usage
from mamba_ssm.server.service import Asked, Service, unless_gone
from mamba_ssm.server.sse import EventStream, chunk

MAX_TOKENS = 32  # as `mamba-esi ask` has it


async def answer(
    body: ChatRequest, request: Request, service: Service, book: Asked, head: dict[str, Any]
) -> Response | ChatCompletion:
    """The book's answer, with its evidence in ``mamba_esi``.

    It is the likeliest one, so seed, temperature and top_p change nothing, and all choices are the same.
    """
    if body.logprobs:
        raise Problem(400, "logprobs are not served for answers from a book", param="logprobs")
    asked = next((message.text for message in reversed(body.messages) if message.role == "user"), "")
    if not asked.strip():
        raise Problem(400, "there is no question: send a message of the user with words in it", param="messages")
    limit = min(body.max_completion_tokens or body.max_tokens or MAX_TOKENS, service.settings.max_tokens)
    ask = partial(book.ask, asked, max_new_tokens=limit)
    found = await unless_gone(request, service.worker.run(ask, service.settings.timeout))
    text = found.text[: min((at for stop in body.stops if (at := found.text.find(stop)) >= 0), default=None)]
    count = service.engine.tokenizer.encode
    usage = Usage.of(len(count(asked).ids), body.n * len(count(text).ids))
    told = found.to_dict()
    extra = {"evidence": told["evidence"], "confidence": found.confidence, "told": found.told}
    if body.stream:
        return EventStream(request.url.path, _chunks(text, extra, usage, head, body))
    choices = [
        ChatChoice(index=index, message=ChatMessage(content=text), finish_reason="stop") for index in range(body.n)
    ]
    return ChatCompletion(**head, choices=choices, usage=usage, mamba_esi=extra)


async def _chunks(
    text: str, extra: dict[str, Any], usage: Usage, head: dict[str, Any], body: ChatRequest
) -> AsyncGenerator[dict[str, Any], None]:
    for index in range(body.n):
        yield {**head, "choices": [chunk(index, {"role": "assistant", "content": text})]}
    for index in range(body.n):
        yield {**head, "choices": [chunk(index, {}, "stop")], "mamba_esi": extra}
    if body.wants_usage:
        yield {**head, "choices": [], "usage": usage.model_dump()}
