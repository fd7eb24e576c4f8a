"""The application: routes, guard and errors put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from mamba_ssm import __version__
from mamba_ssm.book import Engine, Shelf
from mamba_ssm.server import books, chat, completions, health, models, problems, room
from mamba_ssm.server.guard import Guard
from mamba_ssm.server.service import Asked, Service
from mamba_ssm.server.settings import Settings
from mamba_ssm.server.uploads import Uploads

SUMMARY = "A Mamba language model, and the book that it was given, behind OpenAI's endpoints."


def create_app(
    engine: Engine, book: Asked | None = None, settings: Settings | None = None, shelf: Shelf | None = None
) -> FastAPI:
    """The server of one model; with a book, chat completions answer questions about it; with a shelf, there are the
    reading room and what it asks."""
    service = Service(engine, book, settings or Settings())
    uploads = None if shelf is None else Uploads(shelf)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.worker.start()
        try:
            yield
        finally:
            if uploads is not None:
                await asyncio.to_thread(uploads.close)
            await service.worker.close()

    # No pages of documentation: they load their scripts from elsewhere.
    app = FastAPI(
        title="mamba-esi", version=__version__, summary=SUMMARY, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    problems.install(app)
    for router in (health.router, models.router, completions.router, chat.router):
        app.include_router(router)
    if uploads is not None:
        app.state.uploads = uploads
        app.include_router(books.router)
        app.include_router(room.router)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    describe(app)
    return app


def describe(app: FastAPI) -> None:
    """Leave out of the OpenAPI description the status that FastAPI adds, and this server does not answer with."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        description = make()
        for path in description["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return description

    app.openapi = openapi  # type: ignore[method-assign]
