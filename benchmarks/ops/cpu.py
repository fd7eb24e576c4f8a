"""Times of the CPU's kernels, each by itself, at the shapes of mamba-130m.

    python benchmarks/ops/cpu.py --out benchmarks/results/cpu_ops.json

(B, D, L) = (1, 1536, 2048) with 16 states, x and z as halves of one tensor, as a block has them. Before an op is timed,
its result is compared with the reference's. Medians of wall-clock times. "step": one token through 24 blocks, so that
weights come from memory; "read": what they and the states are in bytes, over the time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from model import milliseconds
from timing import agree, machine, write

from mamba_ssm.ops import backend
from mamba_ssm.ops.block_step import block_step
from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.layer_norm import rms_norm_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

M, D, N, W, R, L, LAYERS = 768, 1536, 16, 4, 48, 2048, 24
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def scans(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    x, z = torch.randn(1, L, 2 * D).to(dtype).transpose(1, 2).chunk(2, dim=1)
    delta = torch.randn(1, L, D).to(dtype).transpose(1, 2)
    A, skip, bias = -torch.arange(1.0, N + 1).repeat(D, 1), torch.randn(D), torch.randn(D) - 3
    B, C = (torch.randn(1, L, N).to(dtype).transpose(1, 2) for _ in range(2))
    return {
        "scan": lambda: selective_scan_fn(x, delta, A, B, C, skip, z, bias, True),
        "scan without z and softplus": lambda: selective_scan_fn(x, delta.abs() * 0.1, A, B, C, skip),
    }


def backward(dtype: torch.dtype) -> Callable[[], Tensor]:
    leaves = [torch.randn(1, L, D).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    A = -torch.arange(1.0, N + 1).repeat(D, 1)
    B, C = (torch.randn(1, L, N).to(dtype).transpose(1, 2).requires_grad_() for _ in range(2))
    out = selective_scan_fn(leaves[0], leaves[1], A, B, C, None, leaves[2], torch.full((D,), -3.0), True)
    given = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, [*leaves, B, C], given, retain_graph=True)[0]


def others(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    x = torch.randn(1, L, 2 * D).to(dtype).transpose(1, 2).chunk(2, dim=1)[0]
    weight, bias = torch.randn(D, W).to(dtype), torch.randn(D).to(dtype)
    hidden, stream, scale = torch.randn(1, L, M).to(dtype), torch.randn(1, L, M), torch.randn(M).to(dtype)
    return {
        "convolution": lambda: causal_conv1d_fn(x, weight, bias, activation="silu"),
        "RMS norm + residual": lambda: rms_norm_fn(hidden, scale, None, stream, prenorm=True)[0],
    }


def steps(dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    def new(*shape: int) -> Tensor:
        return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype)

    def layer() -> list[Tensor | None]:
        states = [torch.zeros(1, D, W, dtype=dtype), torch.zeros(1, D, N)]
        inner = [new(D, W), new(D), new(R + 2 * N, D), new(D, R), new(D)]
        return [*states, new(M), None, new(2 * D, M), None, *inner, torch.rand(D, N), torch.ones(D), new(M, D), None]

    layers = [layer() for _ in range(LAYERS)]
    size = sum(t.numel() * t.element_size() for one in layers for t in one if t is not None)
    first, stream = torch.randn(1, M).to(dtype), torch.randn(1, M)

    def run() -> Tensor:
        hidden, residual = first, stream
        for one in layers:
            hidden, residual = block_step(hidden, residual, *one)
        return hidden

    return run, size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for dtype in TOLERANCE:
        torch.manual_seed(0)
        run_step, size = steps(dtype)
        work = {**scans(dtype), **others(dtype)}
        for name, run in work.items():
            with torch.no_grad():
                got = run()
                with backend.use("reference"):
                    want = run().double()
            if not agree(f"{name} {dtype}", ["out"], [got], [want], TOLERANCE[dtype]):
                return 1
        for threads in sorted(set(args.threads)):
            torch.set_num_threads(threads)
            for name, run in {**work, "scan, backward": backward(dtype), "step": run_step}.items():
                with torch.set_grad_enabled(name == "scan, backward"):
                    ms = milliseconds(run, "cpu", args.repeats)
                row = {"op": name, "dtype": str(dtype).removeprefix("torch."), "threads": threads, "ms": ms}
                if name == "step":
                    row["read"] = size / (ms * 1e-3)
                rows.append(row)
                read = f", {row['read'] / 1e9:.1f} GB/s" if "read" in row else ""
                print(f"{name:>28} {row['dtype']:>9} {threads} threads {ms:8.2f} ms{read}", flush=True)
    if args.out:
        write(args.out, {**machine(), "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
