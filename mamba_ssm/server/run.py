"""Listen on an address, and serve until told to stop."""

from __future__ import annotations

import gc
import socket
import sys

import uvicorn

from mamba_ssm.book import Engine, Shelf
from mamba_ssm.errors import ServerError
from mamba_ssm.server.app import create_app
from mamba_ssm.server.guard import is_loopback
from mamba_ssm.server.service import Asked
from mamba_ssm.server.settings import Settings

BACKLOG = 2048
GRACE = 10  # seconds for what is being answered when the server is told to stop


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ServerError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}, port {port} ({error.strerror}): give another --host or --port"
        ) from error
    return listening


def say_where(settings: Settings, port: int) -> None:
    """Say on standard error who can ask, and at which address."""
    if not is_loopback(settings.host) and settings.api_key is None:
        print("mamba-esi: whoever can reach this address may ask: give --api-key to change that", file=sys.stderr)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"mamba-esi: listening on http://{name}:{port}", file=sys.stderr, flush=True)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there by now stays, and each look of the collector through it would stop all answers for 0.2 s.
        gc.collect()
        gc.freeze()


def serve(engine: Engine, book: Asked | None, settings: Settings, port: int, shelf: Shelf | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Says on standard error where."""
    with listen(settings.host, port) as listening:
        app = create_app(engine, book, settings, shelf)
        say_where(settings, listening.getsockname()[1])
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE,
            server_header=False,
            lifespan="on",
        )
        server = _Server(config)
        server.run(sockets=[listening])
    if not server.started:
        raise ServerError("the server could not start: the lines above say why")
