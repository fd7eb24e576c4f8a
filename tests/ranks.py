"""Processes of one group, started once, that run functions of tests."""

from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing import get_context

TIMEOUT = 120  # seconds: a machine may be busy with other tests


def _join(backend, rank, size, meeting):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    # A rank that waits for one that failed fails, too.
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=timeout)


@contextmanager
def ranks(size, folder, backend="gloo"):
    """Gives ``run(function, *args)``, which calls a function of a module on every rank and returns what they return."""
    meeting = (folder / f"meeting-{size}").as_uri()
    with ExitStack() as stack:
        processes = [
            stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), _join, (backend, rank, size, meeting)))
            for rank in range(size)
        ]

        def run(function, *args):
            calls = [process.submit(function, *args) for process in processes]
            return [call.result(2 * TIMEOUT) for call in calls]

        yield run
