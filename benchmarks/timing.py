"""What the benchmarks of GPU kernels share: checks, times from CUDA events, the copy bandwidth, files of results."""

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HOST_CYCLES = 4_000_000  # of the device's clock, about 2 ms: what the host may take to launch one piece of work


@torch.no_grad()
def agree(what: str, names: Sequence[str], got: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float) -> bool:
    """Whether the norms of all relative errors are below `tolerance`; prints them. exact: fp64."""
    errors = {
        name: float((g.double() - want).norm() / want.norm()) for name, g, want in zip(names, got, exact, strict=True)
    }
    right = all(e < tolerance for e in errors.values())
    told = " ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"{'ok   ' if right else 'WRONG'} {what}: {told}", flush=True)
    return right


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
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    """Name, cores and the widest instructions that PyTorch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON; an interruption leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


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
