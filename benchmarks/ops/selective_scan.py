"""Speed of the selective scan on a GPU, after a check that it is right.

    python benchmarks/ops/selective_scan.py --out benchmarks/results/selective_scan_gpu.json
    python benchmarks/ops/selective_scan.py --small       a dry run on a machine without a GPU

Times are medians over CUDA events. "share" is the bytes that must move (forward: u, delta, z in, out out; backward:
those three and dout in, three gradients out) over the copy bandwidth measured in the same run. "original" is the
original package's CUDA C++ scan on an H100 in channel-first layout, and "speed" its time over ours. The training
forward also writes the states that the backward starts from.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

N = 16
# (B, D, L) and the original's milliseconds: bf16 forward and backward, fp32 forward and backward.
ORIGINAL: dict[tuple[int, int, int], tuple[float, float, float, float] | None] = {
    (8, 1536, 2048): (0.451, 1.849, 0.884, 2.064),
    (1, 1536, 2048): (0.071, 0.338, 0.131, 0.312),
    (8, 1536, 8192): (2.033, 7.322, 3.797, 8.308),
    (1, 1536, 65536): (2.226, 7.822, 3.955, 8.565),
    (2, 5120, 8192): (1.847, 6.157, 3.183, 6.749),
    (1, 5120, 65536): (7.502, 25.263, 13.037, 27.716),
    (768, 512, 64): None,
    (16, 1536, 2048): None,
}
CHECKED = [(2, 40, 33), (3, 96, 130), (1, 64, 515), (300, 64, 66)]
SMALL = [(1, 3, 5), (2, 40, 7)]
# Relative error of the norm: fp32 sums, and outputs rounded to bf16 (which the interpreter cuts off instead).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def make(shape: tuple[int, int, int], dtype: torch.dtype, layout: str, device: str) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a Mamba block under autocast gives them, ready for gradients."""
    torch.manual_seed(0)
    batch, dim, length = shape

    def per_channel() -> Tensor:
        if layout == "channel-first":
            return torch.randn(batch, dim, length, device=device, dtype=dtype)
        return torch.randn(batch, length, dim, device=device, dtype=dtype).transpose(1, 2)

    def per_state() -> Tensor:
        return torch.randn(batch, length, N, device=device, dtype=dtype).transpose(1, 2)

    A = -torch.arange(1, N + 1, device=device, dtype=torch.float32).repeat(dim, 1)
    D, bias = torch.randn(dim, device=device), torch.randn(dim, device=device) - 4
    inputs = [per_channel(), per_channel(), A, per_state(), per_state(), D, per_channel(), bias]
    return [m.requires_grad_() for m in inputs]


def run(function: Callable[..., Any], inputs: list[Tensor]) -> Tensor:
    u, delta, A, B, C, D, z, bias = inputs
    return function(u, delta, A, B, C, D, z, bias, delta_softplus=True)


def check(
    function: Callable[..., Any], shape: tuple[int, int, int], dtype: torch.dtype, layout: str, device: str
) -> bool:
    """Whether output and all gradients agree with the reference in float64; prints the errors."""
    from mamba_ssm.ops.reference.selective_scan import selective_scan_fn as reference

    inputs = make(shape, dtype, layout, device)
    dout = torch.randn(shape, device=device).to(dtype)
    out = run(function, inputs)
    got = [out.detach(), *torch.autograd.grad(out, inputs, dout)]
    doubles = [m.detach().double().requires_grad_() for m in inputs]
    exact = run(reference, doubles)
    want = [exact.detach(), *torch.autograd.grad(exact, doubles, dout.double())]
    errors = {
        name: float((g.double() - w).norm() / w.norm()) for name, g, w in zip(("out", *NAMES), got, want, strict=True)
    }
    right = all(e < TOLERANCE[dtype] * (1 if device == "cuda" else 3) for e in errors.values())
    print(
        f"{'ok   ' if right else 'WRONG'} {shape} {dtype} {layout}: "
        + " ".join(f"{k} {v:.1e}" for k, v in errors.items())
    )
    return right


def milliseconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of work() on the device."""
    if device == "cpu":
        work()
        return float("nan")
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth(device: str, repeats: int) -> float:
    """Bytes a second, read and written, of copying a gigabyte."""
    source = torch.zeros(1 << (20 if device == "cpu" else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source), device, repeats) * 1e-3)


def measure(
    function: Callable[..., Any],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    layout: str,
    device: str,
    repeats: int,
    bandwidth: float,
) -> list[dict[str, Any]]:
    inputs = make(shape, dtype, layout, device)
    with torch.no_grad():
        forward = milliseconds(lambda: run(function, inputs), device, repeats)
    training = milliseconds(lambda: run(function, inputs), device, repeats)
    out = run(function, inputs)
    dout = torch.randn_like(out)
    backward = milliseconds(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True), device, repeats)
    original = ORIGINAL.get(shape)
    offset = 0 if dtype == torch.bfloat16 else 2
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
    parser.add_argument("--small", action="store_true", help="tiny sizes, in Triton's interpreter without a GPU")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--layouts", nargs="+", default=["channel-last"], choices=["channel-last", "channel-first"])
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        if not args.small:
            parser.error("no GPU here: add --small for a dry run")
        os.environ["TRITON_INTERPRET"] = "1"
    import triton

    from mamba_ssm.ops.gpu.selective_scan import selective_scan_fn

    dtypes = [getattr(torch, name) for name in args.dtypes]
    checked = [
        check(selective_scan_fn, shape, dtype, layout, device)
        for shape in (SMALL if args.small else CHECKED)
        for dtype in dtypes
        for layout in args.layouts
    ]
    if not all(checked):
        print("the scan is wrong: nothing is timed", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(device, args.repeats)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu"
    print(
        f"\n{name}, copy bandwidth {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__}, triton {triton.__version__}"
    )
    print(f"{'(B, D, L)':>18} {'dtype':>9} {'layout':>14} {'pass':>18} {'ms':>9} {'share':>6} {'original':>10} speed")
    rows = []
    for shape in SMALL if args.small else list(ORIGINAL):
        for dtype in dtypes:
            for layout in args.layouts:
                measured = measure(selective_scan_fn, shape, dtype, layout, device, args.repeats, bandwidth)
                rows += measured
                for row in measured:
                    show(row)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
        report = {"device": name, "copy_bytes_per_second": bandwidth, "versions": versions, "n_states": N, "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
