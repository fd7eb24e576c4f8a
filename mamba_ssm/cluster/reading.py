"""Ray Data reads books into a library: a pool of processes, each with a model of its own."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from mamba_ssm.book import Engine
from mamba_ssm.cluster.shards import Shards
from mamba_ssm.cluster.start import cluster
from mamba_ssm.errors import MambaESIError

TASKS = 10_000  # at most; a task of more than one book does not read again what it has read before it was broken off
RETRIES = 3  # of a task whose process died: a book that kills each must not keep the rest from being read


@dataclass(frozen=True)
class Finished:
    """What became of a book: it is in a shard, or ``error`` says why not. ``seconds``: that it took.

    ``new``: False where it had been read before. ``tokens`` and ``seconds`` are 0 and ``shard`` None with an error.
    """

    path: str
    sha256: str | None = None
    shard: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    new: bool = False
    error: str | None = None


class Reader:
    """A process of the pool."""

    def __init__(self, shards: Shards, model: str | None, device: str, esi: str | None) -> None:
        self.shards, self.engine = shards, Engine.load(model, device, esi)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        path, started = row["path"], time.perf_counter()
        try:
            added = self.shards.add(Path(path), self.engine)
        except MambaESIError as error:
            return asdict(Finished(path, error=str(error)))
        except Exception as error:  # noqa: BLE001  the line of this book says so: it must not end the others
            return asdict(Finished(path, error=f"{path}: {type(error).__name__}: {error}"))
        return asdict(Finished(path, **vars(added), seconds=time.perf_counter() - started))


def read_library(
    books: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    shards: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    model: str | None = None,
    device: str = "auto",
    esi: str | None = None,
) -> Iterator[Finished]:
    """Read books into a library, each in one process; what became of each, as soon as it is known.

    Args:
        books: files, or folders that are one book each, under paths that all machines have.
        out: a folder, or a URL that pyarrow knows, as s3://bucket/folder.
        shards: how many; by default what is there, or 8.
        workers: processes; by default one for each GPU of the cluster, or else for each CPU.
        address: of a Ray cluster, or "auto"; by default Ray is started on this machine.
        model, device, esi: as for `Engine.load`, on each machine.

    A run that is broken off goes on when it is called again: books in the library are not read anew. Only one may read
    into a library at a time. Raises ClusterError, ShelfError, CheckpointError.
    """
    engine = Engine.load(model, "cpu", esi)
    library = Shards.begin(out, shards, engine.fingerprint)
    paths = list(dict.fromkeys(os.path.abspath(book) for book in books))
    with cluster(address, workers or os.cpu_count() or 1):
        told: set[str] = set()
        for path in [path for path in paths if not _is_unicode(path)]:  # Ray passes no others on
            paths.remove(path)
            yield Finished(path, error=f"{path!r}: its name is no Unicode; give it another")
        if paths:
            for finished in _read(paths, (library, model, device, esi), workers):
                told.add(finished.path)
                yield finished
        for path in paths:
            if path not in told:
                yield Finished(path, error=f"{path}: each process that read it died, or had no model; see Ray's logs")
    library.finish(engine)


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(paths: list[str], arguments: tuple[Any, ...], workers: int | None) -> Iterator[Finished]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    there = ray.cluster_resources()
    on_gpus = arguments[2] == "cuda" or (arguments[2] == "auto" and there.get("GPU", 0) >= 1)
    size = workers or int(there.get("GPU" if on_gpus else "CPU", 1))
    books = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=min(len(paths), TASKS))
    with warnings.catch_warnings():
        # What is to take the place of max_task_retries in Ray 2.64 is not there yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        read = books.map(
            Reader,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=1 if on_gpus else None,
            max_task_retries=RETRIES,
        )
    for row in read.iter_rows():
        yield Finished(**row)
