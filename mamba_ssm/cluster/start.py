"""Ray: started on this machine, or joined."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from mamba_ssm.errors import ClusterError

PATIENCE = 5.0  # seconds for a connection
STORE = 256 * 2**20  # bytes of shared memory: what passes between processes are rows, and windows that were found


@contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[None]:
    """Ray at an address, or, for None, of this machine alone with so many places for processes, while it lasts.

    Where this process has joined a cluster already, it is that one. Raises ClusterError.
    """
    if ray.is_initialized():
        yield
        return
    # Ray otherwise reports to its makers what it is used for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                "local",
                num_cpus=cpus,
                object_store_memory=STORE,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        else:
            if address != "auto":
                host, _, port = address.rpartition("://")[2].rpartition(":")
                # Ray itself waits for minutes.
                socket.create_connection((host, int(port)), PATIENCE).close()
            ray.init(address, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # Ray raises no narrower class where a machine is too slow for it
        why = str(error).partition("\n")[0]
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {why}") from error
    try:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            # Ray puts its own in place, which aborts the process three seconds later, whatever it is doing.
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()
