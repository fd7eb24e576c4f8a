"""A layer on one sequence: one process, against parts of it on several, each with one thread, or a GPU of its own.

    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --out benchmarks/results/context_parallel.json
    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --small      a dry run

A layer of mamba-130m, forward and backward; outputs are compared first. Medians of wall-clock seconds, and of the
processor seconds of the rank that took most, which hardly depend on what else the machine does. Bytes are those that a
rank gives to the collectives of such a pass, as PyTorch's profiler sees them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine, write

from mamba_ssm import Mamba
from mamba_ssm.ops.context_parallel import ContextParallel, own_part

LENGTHS = (2048, 8192, 32768)
REPEATS = 5
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def seconds(work: Callable[[], object], device: str) -> dict[str, float]:
    """What all ranks take for it; the slowest one counts."""
    wall, processor = [], []
    for _ in range(REPEATS + 1):
        dist.barrier()
        started, busy = time.perf_counter(), time.process_time()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken = torch.tensor(time.process_time() - busy, device=device)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        processor.append(taken.item())
        wall.append(time.perf_counter() - started)
    return {"wall": statistics.median(wall[1:]), "processor": statistics.median(processor[1:])}


def bytes_given(work: Callable[[], object], backend: str) -> int:
    with torch.profiler.profile(record_shapes=True) as profile:
        work()
    given = [event.input_shapes for event in profile.events() if event.name.startswith(f"{backend}:")]
    return sum(4 * torch.Size(shapes[0]).numel() for shapes in given)


def measure(length: int, width: int, device: str) -> dict[str, object]:
    torch.manual_seed(0)
    layer = Mamba(width, device=device)
    whole = torch.randn(1, length, width).to(device).requires_grad_()
    part = own_part(whole.detach()).clone().requires_grad_()
    context = ContextParallel(part[..., 0])

    def alone() -> None:
        if dist.get_rank() == 0:
            layer(whole).sum().backward()

    def together() -> None:
        layer(part, context=context).sum().backward()

    with torch.no_grad():
        torch.testing.assert_close(layer(part, context=context), own_part(layer(whole)), atol=1e-4, rtol=1e-3)
    given = bytes_given(together, BACKENDS[device])
    return {"alone": seconds(alone, device), "together": seconds(together, device), "bytes_given": given}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    dist.init_process_group(BACKENDS[device])
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    lengths, width = ((64, 128), 32) if arguments.small else (LENGTHS, 768)
    before = os.getloadavg()[0]
    rows = {str(length): measure(length, width, device) for length in lengths}
    report = {"machine": machine(), "ranks": dist.get_world_size(), "load_average_before": before, "lengths": rows}
    if dist.get_rank() == 0:
        print(report)
        if arguments.out:
            write(arguments.out, report)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
