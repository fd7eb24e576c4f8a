"""A library of books over HTTP. Who finds the answers is another's: this is the application around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from mamba_ssm import __version__
from mamba_ssm.book import Answer
from mamba_ssm.book.shelving import ID_DIGITS
from mamba_ssm.server import problems
from mamba_ssm.server.app import describe
from mamba_ssm.server.book_schemas import QUESTION_CHARACTERS, BookAnswer
from mamba_ssm.server.guard import Guard
from mamba_ssm.server.problems import described
from mamba_ssm.server.service import unless_gone
from mamba_ssm.server.settings import Settings

SUMMARY = "A library of books that were read, and answer questions together."
Ask = Callable[[str, int], Awaitable[tuple[Answer, dict[str, str]]]]
"""Answers a question with so many passages; also gives the titles of the books that they are from, by id."""


class LibraryQuestion(BaseModel):
    """A question to all books."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(min_length=1, max_length=QUESTION_CHARACTERS)
    passages: int = Field(8, ge=0, le=64, description="How many passages of evidence to give.")


class LibraryAnswer(BookAnswer):
    """An answer with its evidence, the best passage first; ``book_id`` is the book that the answer was found in."""

    titles: dict[str, str] = Field(description="Of the books that the evidence is from, by id.")


def create_app(ask: Ask, settings: Settings) -> FastAPI:
    """The application that answers with ``ask``."""
    # No pages of documentation: they load their scripts from elsewhere.
    app = FastAPI(title="mamba-esi", version=__version__, summary=SUMMARY, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server runs; asked without a key."""
        return {"status": "ok"}

    @app.post("/v1/ask", responses=described(400, 401, 413, 503, 504))
    async def ask_library(body: LibraryQuestion, request: Request) -> LibraryAnswer:
        """Ask all books. The answer comes with the passages that it is from, by their place in a book's text."""
        try:
            found = asyncio.wait_for(ask(body.question, body.passages), settings.timeout)
            answer, titles = await unless_gone(request, found)
        except asyncio.TimeoutError:
            raise TimeoutError from None  # another class before Python 3.11
        told = BookAnswer.of(answer.book.sha256[:ID_DIGITS], answer)
        return LibraryAnswer(**vars(told), titles=titles)

    problems.install(app)
    app.add_middleware(Guard, settings=settings)
    describe(app)
    return app
