"""Speed of RMS and layer norm with the residual added first on an NVIDIA GPU, after a check that they are right.

    python benchmarks/ops/layer_norm.py --out benchmarks/results/layer_norm_h100.json

Weights in fp32 and a residual stream in fp32 or in x's dtype, as a Mamba block calls it: forward reads x and residual
and writes y and their sum; backward reads that sum (where it was rounded, x and residual), dy and the gradient of the
sum, and writes those of x and residual. Times are medians over CUDA events; inputs take turns, so that they come from
memory and not from a cache. "share" is the bytes that must move over the copy bandwidth measured in the same run; the
backward's time has the sum of dweight in it. "host" is what Python takes for a call.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import agree, copy_bandwidth, machine, milliseconds, write

from mamba_ssm.ops.cuda.layer_norm import backward, forward, layer_norm_fn
from mamba_ssm.ops.reference.layer_norm import layer_norm_fn as reference

EPS = 1e-5
SHAPES = [
    (32768, 768),
    (131072, 768),
    (65536, 2560),
    (32768, 1024),
    (8192, 8192),
    (4096, 16384),
    (100, 768),
]  # (rows, D)
DTYPES = [(torch.bfloat16, torch.float32), (torch.float16, torch.float16), (torch.float32, torch.float32)]
CHECKED = [(333, 768), (1000, 1001), (77, 2560), (50, 16384)]
# Relative error of the norm: fp32 sums, and outputs rounded to half precision.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
BEYOND_CACHE = 400 << 20  # bytes of inputs that take turns


def check(shape: tuple[int, int], dtype: torch.dtype, stream: torch.dtype, rms: bool) -> bool:
    """Whether outputs and all gradients agree with the reference in float64; prints the errors."""
    torch.manual_seed(0)

    def make(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, device="cuda").to(dtype)

    leaves = [make(*shape, dtype=dtype), make(shape[1], dtype=torch.float32)]
    leaves += [make(shape[1], dtype=torch.float32), make(*shape, dtype=stream)]
    seeds = [make(*shape, dtype=torch.bfloat16), make(*shape, dtype=torch.bfloat16)]
    results = []
    for function, exact in ((layer_norm_fn, False), (reference, True)):
        inputs = [(m.double() if exact else m.clone()).requires_grad_() for m in leaves]
        outputs = function(*inputs, EPS, prenorm=True, is_rms_norm=rms)
        grads = torch.autograd.grad(outputs, inputs, [s.to(o.dtype) for s, o in zip(seeds, outputs, strict=True)])
        results.append([*outputs, *grads])
    names = ("y", "sum", "dx", "dweight", "dbias", "dresidual")
    return agree(f"{shape} {dtype} {stream} {'rms' if rms else 'layer'}", names, *results, TOLERANCE[dtype])


def host_microseconds(work: Callable[[], Any], calls: int = 300) -> float:
    """What Python takes for work() while the device keeps up."""
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return taken / calls * 1e6


def measure(
    shape: tuple[int, int], dtype: torch.dtype, stream: torch.dtype, rms: bool, bandwidth: float, repeats: int
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    numbers = shape[0] * shape[1]
    forward_bytes = 2 * numbers * (dtype.itemsize + stream.itemsize)
    summed = stream == torch.float32
    # Where the two have one dtype, one gradient serves x and residual.
    backward_bytes = 2 * numbers * dtype.itemsize + numbers * stream.itemsize * (2 if dtype == stream else 3)
    backward_bytes += 0 if summed else numbers * dtype.itemsize
    copies = max(2, BEYOND_CACHE // forward_bytes)
    xs = [torch.randn(shape, device="cuda").to(dtype) for _ in range(min(copies, 50))]
    residuals = [torch.randn(shape, device="cuda").to(stream) for _ in xs]
    weight = torch.randn(shape[1], device="cuda")
    bias = None if rms else torch.randn(shape[1], device="cuda")
    turns = itertools.cycle(zip(xs, residuals, xs[1:] + xs[:1], residuals[1:] + residuals[:1], strict=True))

    def run_forward() -> None:
        x, residual, _, _ = next(turns)
        forward(x, weight, bias, residual, EPS, rms, stream)

    def run_backward() -> None:
        x, residual, dy, dstream = next(turns)
        backward(dy, dstream, None if summed else x, weight, bias, residual, EPS, rms)

    rows = []
    for name, moved, work in (("forward", forward_bytes, run_forward), ("backward", backward_bytes, run_backward)):
        taken = milliseconds(work, repeats)
        row = {"norm": "rms" if rms else "layer", "shape": shape, "pass": name}
        row |= {"dtype": str(dtype).removeprefix("torch."), "stream": str(stream).removeprefix("torch.")}
        row |= {"ms": taken, "share": moved / (taken * 1e-3) / bandwidth}
        rows.append(row | {"host_us": host_microseconds(work) if shape[0] <= 100 else None})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this times kernels on a CUDA device, and there is none here")
    kinds = (True, False)
    checked = [check(shape, *dtypes, rms) for shape in CHECKED for dtypes in DTYPES for rms in kinds]
    if not all(checked):
        print("the norm is wrong: nothing is timed", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(args.repeats)
    about = machine()
    print(f"\n{about['device']}, copy bandwidth {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__}")
    print(f"{'norm':>5} {'(rows, D)':>16} {'dtype':>9} {'stream':>9} {'pass':>9} {'ms':>9} {'share':>6} {'host us':>8}")
    rows = []
    for rms, shape, dtypes in itertools.product(kinds, SHAPES, DTYPES):
        for row in measure(shape, *dtypes, rms, bandwidth, args.repeats):
            rows.append(row)
            host = "-" if row["host_us"] is None else f"{row['host_us']:.1f}"
            print(
                f"{row['norm']:>5} {row['shape']!s:>16} {row['dtype']:>9} {row['stream']:>9} {row['pass']:>9} "
                f"{row['ms']:9.4f} {row['share']:6.0%} {host:>8}",
                flush=True,
            )
    if args.out:
        report = {**about, "copy_bytes_per_second": bandwidth, "repeats": args.repeats, "rows": rows}
        write(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
