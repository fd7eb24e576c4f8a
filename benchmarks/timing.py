"""What the benchmarks of GPU kernels share: times from CUDA events, the copy bandwidth, a record of the machine."""

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

HOST_CYCLES = 4_000_000  # of the device's clock, about 2 ms: what the host may take to launch one piece of work


def milliseconds(work: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of work() on the current CUDA device.

    The device is kept busy while the host launches, so that short kernels are not timed together with Python.
    """
    for _ in range(3):
        work()
    events = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HOST_CYCLES)
        start.record()
        work()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def copy_bandwidth(repeats: int = 20) -> float:
    """Bytes a second, read and written, of copying a gigabyte on the current CUDA device."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source), repeats) * 1e-3)


def machine() -> dict[str, Any]:
    """Device, versions, commit and date, for the head of a file of results."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "cuda-bindings"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit that is checked out, marked where files differ from it; None where there is no repository.

    MAMBA_COMMIT says it where a copy of the files is measured, without their history.
    """
    if told := os.environ.get("MAMBA_COMMIT"):
        return told
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return run.stdout.strip() or None
