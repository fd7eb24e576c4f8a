"""What the routes share: the model, perhaps a book, and the thread that runs them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

from fastapi import Depends, Request
from starlette.types import Receive

from mamba_ssm.book import Answer, Engine
from mamba_ssm.models.batching import Batch
from mamba_ssm.server.metrics import Metrics
from mamba_ssm.server.problems import Problem
from mamba_ssm.server.settings import Settings
from mamba_ssm.server.worker import Worker

T = TypeVar("T")
P = ParamSpec("P")
SHORT = 2000  # characters


class Asked(Protocol):
    """What can be asked a question: a book."""

    def ask(self, question: str, *, max_new_tokens: int = ...) -> Answer: ...


class Service:
    """One server's model, book, worker and counters. ``model_id``: what clients call the model."""

    def __init__(self, engine: Engine, book: Asked | None, settings: Settings) -> None:
        self.engine, self.book, self.settings = engine, book, settings
        # The name of a folder, not where it lies.
        self.model_id = Path(engine.name).resolve().name if os.path.isdir(engine.name) else engine.name
        self.started = int(time.time())
        self.worker = Worker(lambda: Batch(engine.model, settings.slots), settings.waiting)
        self.metrics = Metrics(self.worker)

    def check_model(self, name: str) -> None:
        """Raise a Problem where a request asks for another model."""
        if name != self.model_id:
            detail = f"there is no model {name!r} here, but {self.model_id!r}"
            raise Problem(404, detail, code="model_not_found", param="model")


async def _service(request: Request) -> Service:  # async: the others are called in a thread each
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]


async def aside(size: int, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """work(*given), on texts of so many characters: long ones take a while, and the event loop has others to serve.

    Short ones take less than going to a thread and back, where the model's thread wants to run as well.
    """
    if size <= SHORT:
        return work(*given, **named)
    return await asyncio.to_thread(work, *given, **named)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and stop it when the client goes away."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(499, "the client went away")
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def gone(receive: Receive) -> None:
    """Wait until the client has gone away, after its body has come."""
    while (await receive())["type"] != "http.disconnect":
        pass
