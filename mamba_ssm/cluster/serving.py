"""Ray Serve answers over a library: a deployment for each shard searches it, one in front asks all and answers once."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mamba_ssm.book import Answer, BookInfo, Engine, Seconds, ShelfBook
from mamba_ssm.book.answers import check, reply, windows_for
from mamba_ssm.book.book import MAX_NEW_TOKENS
from mamba_ssm.book.find import Found
from mamba_ssm.book.rank import KEPT, rank
from mamba_ssm.cluster.shards import Shards
from mamba_ssm.cluster.start import cluster
from mamba_ssm.errors import ClusterError, ShelfError
from mamba_ssm.esi.search import Query
from mamba_ssm.server.library import create_app
from mamba_ssm.server.problems import Problem
from mamba_ssm.server.run import listen
from mamba_ssm.server.settings import Settings

APP = "library"
TOGETHER = 16  # questions that a process answers at once
log = logging.getLogger("mamba_esi.cluster")


class Shard:
    """Searches one shard."""

    def __init__(self, shards: Shards, number: int, model: str | None, device: str, esi: str | None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="mamba-esi-")
        self._shelf = shards.shelf(number, Engine.load(model, device, esi), Path(self._scratch.name))

    def tokens(self) -> int:
        """Of its books."""
        return sum(book.tokens for book in self._shelf.books())

    def search(
        self, query: Query, k: int, tokens: int
    ) -> tuple[list[Found], NDArray[np.int64] | None, dict[str, ShelfBook]]:
        """What `Shelf.search` finds in it, and the books of that by id. ``tokens``: of the whole library."""
        books = {book.id: book for book in self._shelf.books()}
        found, counts = self._shelf.search(query, list(books.values()), k, tokens)
        there = {key: books[key] for each in found if (key := each.window.book) is not None}
        return found, counts, there


class Front:
    """Asks all shards, and answers from the best windows of all."""

    def __init__(
        self, shards: list[DeploymentHandle], settings: Settings, model: str | None, device: str, esi: str | None
    ) -> None:
        self._shards, self._settings = shards, settings
        self._engine = Engine.load(model, device, esi)
        self._tokens: int | None = None
        # Two threads would fight for PyTorch's cores.
        self._thread = ThreadPoolExecutor(1, "model")

    def __serve_build_asgi_app__(self) -> object:
        return create_app(self.ask, self._settings)

    async def ask(self, question: str, passages: int) -> tuple[Answer, dict[str, str]]:
        """An answer, with the titles of the books of its evidence by id. Raises QuestionError, ShelfError, Problem."""
        check([question], None, passages, MAX_NEW_TOKENS)
        engine, started, loop = self._engine, time.perf_counter(), asyncio.get_running_loop()
        top_k = engine.config.top_k
        embedded = await loop.run_in_executor(self._thread, engine.question, question)
        k = windows_for(engine, top_k, passages)
        try:
            if self._tokens is None:
                self._tokens = sum(await asyncio.gather(*(shard.tokens.remote() for shard in self._shards)))
            searches = (shard.search.remote(embedded.query, KEPT * k, self._tokens) for shard in self._shards)
            parts = await asyncio.gather(*searches)
        except (RayError, RayServeException) as error:
            log.error("a shard failed", exc_info=error)
            raise Problem(503, "a shard of the library does not answer: try again later", code="shard") from error
        books = {key: book for _, _, some in parts for key, book in some.items()}
        found = sorted((each for some, _, _ in parts for each in some), key=lambda each: -each.score)[: KEPT * k]
        if not found:
            raise ShelfError("there are no books to ask: `mamba-esi library read` adds them")
        counts = [each for _, each, _ in parts if each is not None]
        ranked = rank(question, embedded, found, np.sum(counts, 0) if counts else None, k)
        searched = time.perf_counter()
        said = await loop.run_in_executor(
            self._thread, reply, engine, question, embedded, ranked, top_k, MAX_NEW_TOKENS
        )
        book = books[said.book or ranked[0].window.book or ""]
        info = BookInfo(book.path, book.sha256, book.tokens, book.characters)
        seconds = Seconds(0.0, searched - started, time.perf_counter() - searched)
        answer = said.answer(question, passages, engine.name, info, seconds)
        return answer, {key: books[key].title for passage in answer.evidence if (key := passage.book)}


@contextmanager
def serve_library(
    url: str,
    settings: Settings | None = None,
    port: int = 8000,
    *,
    replicas: int = 1,
    address: str | None = None,
    model: str | None = None,
    device: str = "auto",
    esi: str | None = None,
) -> Iterator[None]:
    """Answer over HTTP, in ``with``: it is entered when all shards are open.

    Args:
        url: of a library that `read_library` made. A path is opened where it is, on each machine; a URL is copied.
        replicas: processes for each shard, a CPU each.
        address: of a Ray cluster, or "auto"; by default Ray is started on this machine.
        model, device, esi: as for `Engine.load`, on each machine.

    Raises ClusterError, CheckpointError, ServerError.
    """
    settings = settings or Settings()
    library = Shards.open(url)
    if Engine.load(model, "cpu", esi).fingerprint != library.fingerprint:
        raise ClusterError(f"{url}: read with another model; pass the same --model and --esi")
    with cluster(address, library.count * replicas + 1):
        with listen(settings.host, port):
            pass  # Ray would say less clearly that the address is taken
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": port, "request_timeout_s": settings.timeout},
        )
        options = {"max_ongoing_requests": TOGETHER, "ray_actor_options": {"num_cpus": 1}}
        shards = [
            serve.deployment(Shard, name=f"shard-{number:04}", num_replicas=replicas, **options).bind(
                library, number, model, device, esi
            )
            for number in range(library.count)
        ]
        front = serve.deployment(serve.ingress()(Front), name="front", **options)
        try:
            serve.run(front.bind(shards, settings, model, device, esi), name=APP)
        except RuntimeError as error:
            raise ClusterError(f"{url}: a shard could not be opened; Ray's logs say why") from error
        try:
            yield
        finally:
            serve.delete(APP)
