"""Speed of the selective scan on a GPU, after a check that it is right.

    python benchmarks/ops/selective_scan.py --out benchmarks/results/selective_scan.json

Times are medians over CUDA events. "share" is the bytes that must move (forward: u, delta, z in, out out; backward:
those three and dout in, three gradients out) over the copy bandwidth measured in the same run. "original" is the
original package's CUDA C++ scan on an H100 in channel-first layout, and "speed" its time over ours. The training
forward also writes the states that the backward starts from.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import agree, copy_bandwidth, machine, milliseconds, write

from mamba_ssm.ops import backend
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref

N = 16
# (B, D, L) and the original's milliseconds: bf16 forward and backward, fp32 forward and backward.
ORIGINAL: dict[tuple[int, int, int], tuple[float, float, float, float] | None] = {
    (8, 1536, 2048): (0.451, 1.849, 0.884, 2.064),
    (8, 1536, 8192): (2.033, 7.322, 3.797, 8.308),
    (2, 5120, 8192): (1.847, 6.157, 3.183, 6.749),
    (1, 5120, 65536): (7.502, 25.263, 13.037, 27.716),
    (1, 1536, 65536): (2.226, 7.822, 3.955, 8.565),
    (1, 1536, 2048): (0.071, 0.338, 0.131, 0.312),
    (16, 1536, 2048): None,
    (4, 1536, 8192): None,
}
CHECKED = [(2, 40, 33), (3, 96, 130), (1, 64, 515), (300, 64, 66)]
# Relative error of the norm: fp32 sums, and outputs rounded to half precision.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def make(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a Mamba block under autocast gives them, ready for gradients."""
    torch.manual_seed(0)
    batch, dim, length = shape

    def tensor(rows: int) -> Tensor:
        if layout == "channel-first":
            return torch.randn(batch, rows, length, device="cuda", dtype=dtype)
        return torch.randn(batch, length, rows, device="cuda", dtype=dtype).transpose(1, 2)

    A = -torch.arange(1, N + 1, device="cuda", dtype=torch.float32).repeat(dim, 1)
    D, bias = torch.randn(dim, device="cuda"), torch.randn(dim, device="cuda") - 4
    inputs = [tensor(dim), tensor(dim), A, tensor(N), tensor(N), D, tensor(dim), bias]
    return [m.requires_grad_() for m in inputs]


def run(function: Callable[..., Any], inputs: list[Tensor]) -> Tensor:
    u, delta, A, B, C, D, z, bias = inputs
    return function(u, delta, A, B, C, D, z, bias, delta_softplus=True)


def check(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> bool:
    """Whether output and all gradients agree with the reference in float64; prints the errors."""
    inputs = make(shape, dtype, layout)
    dout = torch.randn(shape, device="cuda").to(dtype)
    out = run(selective_scan_fn, inputs)
    got = [out.detach(), *torch.autograd.grad(out, inputs, dout)]
    doubles = [m.detach().double().requires_grad_() for m in inputs]
    exact = run(selective_scan_ref, doubles)
    want = [exact.detach(), *torch.autograd.grad(exact, doubles, dout.double())]
    return agree(f"{shape} {dtype} {layout}", ("out", *NAMES), got, want, TOLERANCE[dtype])


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, repeats: int, bandwidth: float
) -> list[dict[str, Any]]:
    inputs = make(shape, dtype, layout)
    with torch.no_grad():
        forward = milliseconds(lambda: run(selective_scan_fn, inputs), repeats)
    training = milliseconds(lambda: run(selective_scan_fn, inputs), repeats)
    out = run(selective_scan_fn, inputs)
    dout = torch.randn_like(out)
    backward = milliseconds(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True), repeats)
    original = ORIGINAL.get(shape) if dtype in (torch.bfloat16, torch.float32) else None
    offset = 2 if dtype == torch.float32 else 0
    rows = []
    for name, time, tensors, column in (
        ("forward", forward, 4, 0),
        ("forward, training", training, 4, 0),
        ("backward", backward, 7, 1),
    ):
        moved = tensors * out.numel() * out.element_size()
        peer = original[offset + column] if original else None
        rows.append(
            {
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "layout": layout,
                "pass": name,
                "ms": time,
                "share": moved / (time * 1e-3) / bandwidth,
                "original_ms": peer,
                "speed": peer / time if peer else None,
            }
        )
    return rows


def show(row: dict[str, Any]) -> None:
    against = f"{row['original_ms']:10.3f} {row['speed']:8.2f}" if row["original_ms"] else f"{'-':>10} {'-':>8}"
    print(
        f"{row['shape']!s:>18} {row['dtype']:>9} {row['layout']:>14} {row['pass']:>18} "
        f"{row['ms']:9.3f} {row['share']:6.0%} {against}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--backend", default="cuda", choices=["cuda", "triton"])
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float16", "float32"]
    )
    parser.add_argument("--layouts", nargs="+", default=["channel-last", "channel-first"])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    backend.use(args.backend)
    dtypes = [getattr(torch, name) for name in args.dtypes]
    checked = [check(shape, dtype, layout) for shape in CHECKED for dtype in dtypes for layout in args.layouts]
    if not all(checked):
        print("the scan is wrong: nothing is timed", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(args.repeats)
    print(f"\n{torch.cuda.get_device_name()}, copy bandwidth {bandwidth / 1e9:.0f} GB/s, back-end {args.backend}")
    print(f"{'(B, D, L)':>18} {'dtype':>9} {'layout':>14} {'pass':>18} {'ms':>9} {'share':>6} {'original':>10} speed")
    rows = []
    for shape in ORIGINAL:
        for dtype in dtypes:
            for layout in args.layouts:
                measured = measure(shape, dtype, layout, args.repeats, bandwidth)
                rows += measured
                for row in measured:
                    show(row)
    if args.out:
        report = {**machine(), "backend": args.backend, "copy_bytes_per_second": bandwidth, "n_states": N, "rows": rows}
        write(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
