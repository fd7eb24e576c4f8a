"""From prompts to pieces of text: what both kinds of completions do with the worker's tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mamba_ssm.models.batching import Sampling, Token
from mamba_ssm.server.problems import Problem
from mamba_ssm.server.schemas import GenerationRequest
from mamba_ssm.server.service import Service
from mamba_ssm.server.texts import TextStream
from mamba_ssm.server.worker import Stream

Finish = Literal["stop", "length"]


@dataclass
class Piece:
    """What tokens added to choice ``index``. The end of a text is no part of it, nor of ``tokens``."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None


@dataclass
class Choice:
    """A whole text."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish = "stop"


class Generation:
    """The choices of one request: n for each prompt, those of a prompt side by side.

    Raises Problem where a prompt or max_tokens is over the server's limits, Busy where too much waits.
    """

    def __init__(
        self,
        service: Service,
        request: GenerationRequest,
        prompts: Sequence[list[int]],
        max_tokens: int,
        top_logprobs: int | None,
        stops: Sequence[str],
    ) -> None:
        limits, tokenizer = service.settings, service.engine.tokenizer
        if max_tokens > limits.max_tokens:
            raise Problem(400, f"max_tokens is {max_tokens}: at most {limits.max_tokens}", param="max_tokens")
        for ids in prompts:
            if len(ids) > limits.max_prompt:
                detail = f"a prompt has {len(ids):,} tokens: at most {limits.max_prompt:,}"
                raise Problem(400, detail, code="context_length_exceeded", param="prompt")
        samplings = [
            Sampling(
                max_tokens,
                request.temperature,
                request.top_p,
                # The choices of a prompt differ, and repeat.
                None if request.seed is None else (request.seed + choice) % 2**63,
                tokenizer.end_of_text,
                top_logprobs,
            )
            for choice in range(request.n)
        ]
        wanted = [(ids, sampling) for ids in prompts for sampling in samplings]
        self._stream: Stream = service.worker.submit(wanted, limits.timeout)
        self._texts = [TextStream(tokenizer.decode, stops) for _ in wanted]
        self._metrics, self._end = service.metrics, tokenizer.end_of_text
        self.choices = len(wanted)
        self.prompt_tokens = sum(map(len, prompts))
        self.completion_tokens = 0
        self._metrics.prompt_tokens.inc(self.prompt_tokens)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All pieces of all choices, as they come.

        A piece is a token, and more of them where these come faster than pieces can be sent.
        """
        try:
            async for made in self._stream:
                pieces: dict[int, Piece] = {}
                for index, token in made:
                    piece = pieces.setdefault(index, Piece(index))
                    if piece.finish is None:
                        self._add(piece, token)
                for piece in pieces.values():
                    yield piece
        finally:
            self._stream.cancel()
            self._metrics.tokens.inc(self.completion_tokens)

    def _add(self, piece: Piece, token: Token) -> None:
        """Another token of a text, which may be its last one."""
        text, finish = self._texts[piece.index], token.finish
        if token.id != self._end:
            piece.text += text.push(token.id)
            piece.tokens.append(token)
            self.completion_tokens += 1
        if finish is not None:
            piece.text += text.flush()
        if text.stopped:
            if finish is None:
                self._stream.end(piece.index)
            finish = "stop"
        piece.finish = finish

    async def whole(self) -> list[Choice]:
        """All choices, when the last of them has ended."""
        choices = [Choice() for _ in self._texts]
        async for piece in self.pieces():
            choice = choices[piece.index]
            choice.text += piece.text
            choice.tokens += piece.tokens
            if piece.finish is not None:
                choice.finish = piece.finish
        return choices
