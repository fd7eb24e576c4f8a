"""OpenAI's /v1/chat/completions: the language model goes on with a conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from mamba_ssm.models.batching import Token
from mamba_ssm.server import book_chat
from mamba_ssm.server.completions import ERRORS
from mamba_ssm.server.generation import Generation
from mamba_ssm.server.problems import Problem
from mamba_ssm.server.schemas import (
    ChatChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    Message,
    TopLogprob,
    Usage,
)
from mamba_ssm.server.service import TheService, aside, unless_gone
from mamba_ssm.server.sse import STREAMED, EventStream, chunk
from mamba_ssm.text.tokenizer import Tokenizer

router = APIRouter(prefix="/v1")
MAX_TOKENS = 256  # where a request does not say
NAMES = {"user": "User", "assistant": "Assistant"}
NEXT_TURN = "\nUser:"  # a model that was not taught to end its turn goes on with the other's


@router.post("/chat/completions", response_model=ChatCompletion, responses={200: STREAMED, **ERRORS})
async def chat(body: ChatRequest, request: Request, service: TheService) -> Response | ChatCompletion:
    """Answer the last message: from the book, where the server has one, else as the language model goes on."""
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs: set it to true", param="top_logprobs")
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(time.time()),
        "model": service.model_id,
    }
    if service.book is not None:
        return await book_chat.answer(body, request, service, service.book, head)
    tokenizer = service.engine.tokenizer
    text = as_text(body.messages)
    prompt = (await aside(len(text), tokenizer.encode, text)).ids.tolist()
    limit = body.max_completion_tokens or body.max_tokens or min(MAX_TOKENS, service.settings.max_tokens)
    top = (body.top_logprobs or 0) if body.logprobs else None
    generation = Generation(service, body, [prompt], limit, top, [*body.stops, NEXT_TURN])
    if body.stream:
        return EventStream(request.url.path, _chunks(generation, head, tokenizer, body))
    return await unless_gone(request, _whole(generation, head, tokenizer, body))


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as plain text, up to where the assistant's next words begin."""
    turns = [f"{NAMES[m.role]}: {m.text}" if m.role in NAMES else m.text for m in messages]
    return "\n".join([*turns, "Assistant:"])


def _logprobs(tokens: list[Token], tokenizer: Tokenizer, wanted: bool) -> ChatLogprobs | None:
    if not wanted:
        return None

    def told(token: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.decode([token])
        # Half a character has no text of its own.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

    content = []
    for token in tokens:
        top = [TopLogprob(**told(*pair)) for pair in token.likeliest]
        content.append(ChatLogprob(**told(token.id, token.logprob), top_logprobs=top))
    return ChatLogprobs(content=content)


async def _whole(
    generation: Generation, head: dict[str, Any], tokenizer: Tokenizer, body: ChatRequest
) -> ChatCompletion:
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage(content=choice.text.lstrip()),
            finish_reason=choice.finish,
            logprobs=_logprobs(choice.tokens, tokenizer, body.logprobs),
        )
        for index, choice in enumerate(await generation.whole())
    ]
    usage = Usage.of(generation.prompt_tokens, generation.completion_tokens)
    return ChatCompletion(**head, choices=choices, usage=usage)


async def _chunks(
    generation: Generation, head: dict[str, Any], tokenizer: Tokenizer, body: ChatRequest
) -> AsyncGenerator[dict[str, Any], None]:
    for index in range(generation.choices):
        yield {**head, "choices": [chunk(index, {"role": "assistant", "content": ""})]}
    began = [False] * generation.choices
    async for piece in generation.pieces():
        index, text, finish = piece.index, piece.text, piece.finish
        if not began[index]:
            text = text.lstrip()  # as in a whole answer
            began[index] = bool(text)
        told = _logprobs(piece.tokens, tokenizer, body.logprobs)
        if text or told is not None or finish is not None:
            delta = {"content": text} if text else {}
            yield {**head, "choices": [chunk(index, delta, finish, told.model_dump() if told else None)]}
    if body.wants_usage:
        usage = Usage.of(generation.prompt_tokens, generation.completion_tokens)
        yield {**head, "choices": [], "usage": usage.model_dump()}
