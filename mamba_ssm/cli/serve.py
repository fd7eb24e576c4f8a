"""``mamba-esi serve``: answer over HTTP."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from mamba_ssm.cli.options import (
    ApiKeyOption,
    Device,
    DeviceOption,
    EsiOption,
    HostOption,
    ModelOption,
    TimeoutOption,
)
from mamba_ssm.cli.shelf import ShelfOption
from mamba_ssm.errors import ServerError

PACKAGES = ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic", "python_multipart")


def serve(
    book: Annotated[
        str | None,
        typer.Argument(metavar="[BOOK]", help="What chat completions answer questions about: a book, as for `ask`."),
    ] = None,
    shelf: ShelfOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    model: ModelOption = None,
    esi: EsiOption = None,
    device: DeviceOption = Device.auto,
    api_key: ApiKeyOption = None,
    slots: Annotated[int, typer.Option(min=1, max=1024, help="Texts that are generated together.")] = 64,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused.")] = 256,
    timeout: TimeoutOption = 300,
) -> None:
    """Serve a reading room for books, and the model, and perhaps a BOOK, with OpenAI's HTTP interface."""
    try:
        from mamba_ssm.server.run import serve as run
        from mamba_ssm.server.settings import Settings
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise ServerError(f'serving needs {error.name}: pip install "mamba-esi[serve]"') from error
    from mamba_ssm.book import Engine, Shelf, load_book, read

    engine = Engine.load(model, device.value, esi)
    settings = Settings(host=host, api_key=api_key, slots=slots, waiting=waiting, timeout=timeout)
    with ExitStack() as stack:
        opened = None
        if book is not None:
            # Read once, not for each question.
            opened = stack.enter_context((load_book if book.lower().endswith(".esi") else read)(book, engine))
        run(engine, opened, settings, port, stack.enter_context(Shelf.open(shelf, engine)))
