"""OpenAI's /v1/completions: the language model goes on from a prompt."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from mamba_ssm.models.batching import Token
from mamba_ssm.server.generation import Generation
from mamba_ssm.server.problems import Problem, described
from mamba_ssm.server.schemas import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, Usage
from mamba_ssm.server.service import Service, TheService, aside, unless_gone
from mamba_ssm.server.sse import STREAMED, EventStream
from mamba_ssm.text.tokenizer import Tokenizer

router = APIRouter(prefix="/v1")
ERRORS = described(400, 401, 403, 404, 408, 413, 429, 500, 503, 504)


@router.post("/completions", response_model=Completion, responses={200: STREAMED, **ERRORS})
async def complete(body: CompletionRequest, request: Request, service: TheService) -> Response | Completion:
    """Go on from a prompt, or from some."""
    service.check_model(body.model)
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(given[0], int):
        given = [given]
    prompts = await aside(sum(map(len, given)), _prompts, given, service)
    generation = Generation(service, body, prompts, body.max_tokens, body.logprobs, body.stops)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.model_id,
    }
    if body.stream:
        return EventStream(request.url.path, _chunks(generation, head, service.engine.tokenizer, body))
    return await unless_gone(request, _whole(generation, head, service.engine.tokenizer, body))


def _prompts(given: list[Any], service: Service) -> list[list[int]]:
    tokenizer, size = service.engine.tokenizer, service.engine.model.config.vocab_size
    prompts = []
    for prompt in given:
        ids = tokenizer.encode(prompt).ids.tolist() if isinstance(prompt, str) else prompt
        if not ids and tokenizer.end_of_text is not None:
            ids = [tokenizer.end_of_text]  # an empty text begins after the end of another
        if not ids:
            raise Problem(400, "a prompt is empty: give some text", param="prompt")
        if max(ids) >= size:
            raise Problem(400, f"a prompt has token {max(ids)}: the largest is {size - 1}", param="prompt")
        prompts.append(ids)
    return prompts


def _logprobs(tokens: list[Token], tokenizer: Tokenizer, wanted: bool, offset: int = 0) -> CompletionLogprobs | None:
    """What is told of tokens that begin ``offset`` characters after the prompt."""
    if not wanted:
        return None
    told = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token in tokens:
        assert token.logprob is not None
        text = tokenizer.decode([token.id])
        told.tokens.append(text)
        told.token_logprobs.append(token.logprob)
        told.top_logprobs.append({tokenizer.decode([id]): value for id, value in token.likeliest})
        told.text_offset.append(offset)
        offset += len(text)
    return told


async def _whole(
    generation: Generation, head: dict[str, Any], tokenizer: Tokenizer, body: CompletionRequest
) -> Completion:
    choices = [
        CompletionChoice(
            index=index,
            text=choice.text,
            finish_reason=choice.finish,
            logprobs=_logprobs(choice.tokens, tokenizer, body.logprobs is not None),
        )
        for index, choice in enumerate(await generation.whole())
    ]
    usage = Usage.of(generation.prompt_tokens, generation.completion_tokens)
    return Completion(**head, choices=choices, usage=usage)


async def _chunks(
    generation: Generation, head: dict[str, Any], tokenizer: Tokenizer, body: CompletionRequest
) -> AsyncGenerator[dict[str, Any], None]:
    offsets = [0] * generation.choices
    async for piece in generation.pieces():
        index, text, finish = piece.index, piece.text, piece.finish
        told = _logprobs(piece.tokens, tokenizer, body.logprobs is not None, offsets[index])
        if not text and finish is None and told is None:
            continue  # half a character, or of a stop string perhaps
        if told is not None:
            offsets[index] += sum(map(len, told.tokens))
        choice = {
            "index": index,
            "text": text,
            "finish_reason": finish,
            "logprobs": told.model_dump() if told else None,
        }
        yield {**head, "choices": [choice]}
    if body.wants_usage:
        usage = Usage.of(generation.prompt_tokens, generation.completion_tokens)
        yield {**head, "choices": [], "usage": usage.model_dump()}
