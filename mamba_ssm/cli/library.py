"""``mamba-esi library``: books of many machines, read and asked together with Ray."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
from mamba_ssm.cli.output import one_line
from mamba_ssm.cli.serve import PACKAGES as SERVE
from mamba_ssm.errors import ClusterError

PACKAGES = ("ray", "pyarrow", *SERVE)

app = typer.Typer(no_args_is_help=True, help="Read and ask many books on many machines, with Ray.")

AddressOption = Annotated[
    str | None,
    typer.Option(help="A Ray cluster, or `auto` for the one that this machine is in. (default: this machine alone)"),
]


@contextmanager
def _the_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise ClusterError(f'a library needs {error.name}: pip install "mamba-esi[ray]"') from error


@app.command()
def read(
    books: Annotated[
        list[str],
        typer.Argument(metavar="FILE|FOLDER...", help="Books, and folders whose books are read with all below them."),
    ],
    out: Annotated[
        str, typer.Option(metavar="FOLDER|URL", help="Where the library is, or begins; as s3://bucket/folder.")
    ],
    shards: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Parts of the library. (default: what is there, or 8)")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read. (default: one for each GPU, or else each CPU)")
    ] = None,
    address: AddressOption = None,
    model: ModelOption = None,
    esi: EsiOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Read books into a library. A run that was broken off goes on where it was when it is called again."""
    with _the_extra():
        from mamba_ssm.cluster.reading import read_library
    from mamba_ssm.book import books_in

    paths = [path for book in books for path in books_in(book)]
    failed = 0
    for book in read_library(
        paths, out, shards=shards, workers=workers, address=address, model=model, device=device.value, esi=esi
    ):
        if book.error is not None:  # of many books, one that cannot be read must not keep out the rest
            failed += 1
            print(f"mamba-esi: {one_line(book.error)}", file=sys.stderr)
        else:
            kept = "" if book.new else ", read before"
            print(f"{one_line(book.path)}: {book.tokens:,} tokens, shard {book.shard}{kept}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command()
def serve(
    library: Annotated[str, typer.Argument(metavar="FOLDER|URL", help="What `library read` wrote.")],
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes for each shard, a CPU each.")] = 1,
    address: AddressOption = None,
    model: ModelOption = None,
    esi: EsiOption = None,
    device: DeviceOption = Device.auto,
    api_key: ApiKeyOption = None,
    timeout: TimeoutOption = 300,
) -> None:
    """Answer questions to a library over HTTP: a process for each shard, and one in front of them."""
    with _the_extra():
        from mamba_ssm.cluster.serving import serve_library
        from mamba_ssm.server.run import say_where
        from mamba_ssm.server.settings import Settings
    settings = Settings(host=host, api_key=api_key, timeout=timeout)
    with serve_library(
        library, settings, port, replicas=replicas, address=address, model=model, device=device.value, esi=esi
    ):
        say_where(settings, port)
        threading.Event().wait()
