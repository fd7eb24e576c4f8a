"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of the server, and who may talk to it.

    ``host``: the address that it listens on. ``api_key``: what clients must send as a bearer token, if not None.
    ``slots``: texts that are decoded together. ``waiting``: requests that may wait for one. ``timeout``: seconds that a
    request may take. ``max_body``: bytes of a request, ``max_upload`` of one that brings a book. ``max_prompt``,
    ``max_tokens``: tokens of a prompt, and of what follows it.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    slots: int = 64
    waiting: int = 256
    timeout: float = 300.0
    max_body: int = 4 * 2**20
    max_upload: int = 512 * 2**20
    max_prompt: int = 65536
    max_tokens: int = 4096
