"""Speed of the causal convolution on an NVIDIA GPU, after a check that it is right.

    python benchmarks/ops/causal_conv1d.py --out benchmarks/results/causal_conv1d_h100.json

Width 4, SiLU, parameters in fp32, as a Mamba block under autocast calls it. "slice" is x as the first half of a wider
channel-last tensor, as in that block, with its gradient written into one too. Times are medians over CUDA events;
inputs take turns, so that they come from memory and not from a cache. "share" is the bytes that must move (forward: x
in, out out; backward: x and dout in, dx out) over the copy bandwidth measured in the same run.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import agree, copy_bandwidth, machine, milliseconds, write

from mamba_ssm.ops.cuda.causal_conv1d import backward, causal_conv1d_fn, forward
from mamba_ssm.ops.reference.causal_conv1d import causal_conv1d_fn as reference

WIDTH = 4
SHAPES = [(8, 1536, 2048), (1, 1536, 65536), (16, 1536, 2048)]  # (B, D, L)
CHECKED = [(2, 40, 33), (3, 96, 130), (1, 264, 1031), (2, 1536, 2048)]
LAYOUTS = ("channel-last", "slice", "channel-first")
# Relative error of the norm: fp32 sums, and outputs rounded to half precision.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-3}
BEYOND_CACHE = 400 << 20  # bytes of inputs that take turns


def empty(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> Tensor:
    batch, dim, length = shape
    if layout == "channel-first":
        return torch.empty(shape, dtype=dtype, device="cuda")
    wide = torch.empty(batch, length, 2 * dim if layout == "slice" else dim, dtype=dtype, device="cuda")
    return wide[..., :dim].transpose(1, 2)


def parameters(dim: int) -> tuple[Tensor, Tensor]:
    """weight, bias."""
    return torch.randn(dim, WIDTH, device="cuda"), torch.randn(dim, device="cuda")


def check(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> bool:
    """Whether output and all gradients agree with the reference in float64; prints the errors."""
    torch.manual_seed(0)
    leaves = [empty(shape, dtype, layout).normal_(), *parameters(shape[1])]
    dout = torch.randn(shape, device="cuda").to(dtype)
    results = []
    for function, convert in ((causal_conv1d_fn, dtype), (reference, torch.float64)):
        inputs = [m if convert == dtype else m.double() for m in leaves]
        inputs = [m.detach().requires_grad_() for m in inputs]
        out = function(*inputs, activation="silu")
        results.append([out.detach(), *torch.autograd.grad(out, inputs, dout.to(out.dtype))])
    return agree(f"{shape} {dtype} {layout}", ("out", "x", "weight", "bias"), *results, TOLERANCE[dtype])


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, bandwidth: float, repeats: int
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    size = torch.Size(shape).numel() * dtype.itemsize
    xs = [empty(shape, dtype, layout).normal_() for _ in range(max(2, BEYOND_CACHE // size))]
    douts = [torch.randn_like(x) for x in xs]  # dense, in x's layout
    weight, bias = parameters(shape[1])
    dx = empty(shape, dtype, layout)
    turns = itertools.cycle(zip(xs, douts, strict=True))

    def run_backward() -> None:
        x, dout = next(turns)
        backward(dout, x, weight, bias, None, None, True, dx)

    rows = []
    for name, tensors, time in (
        ("forward", 2, milliseconds(lambda: forward(next(turns)[0], weight, bias, None, None, True), repeats)),
        ("backward", 3, milliseconds(run_backward, repeats)),
    ):
        row = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "layout": layout, "pass": name}
        rows.append(row | {"ms": time, "share": tensors * size / (time * 1e-3) / bandwidth})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this times kernels on a CUDA device, and there is none here")
    dtypes = [torch.bfloat16, torch.float32]
    cases = list(itertools.product(dtypes, LAYOUTS))
    checked = [check(shape, dtype, layout) for shape in CHECKED for dtype, layout in cases]
    if not all(checked):
        print("the convolution is wrong: nothing is timed", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(args.repeats)
    about = machine()
    print(f"\n{about['device']}, copy bandwidth {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__}")
    print(f"{'(B, D, L)':>18} {'dtype':>9} {'layout':>14} {'pass':>9} {'ms':>9} {'share':>6}")
    rows = []
    for shape, (dtype, layout) in itertools.product(SHAPES, cases):
        for row in measure(shape, dtype, layout, bandwidth, args.repeats):
            rows.append(row)
            print(
                f"{row['shape']!s:>18} {row['dtype']:>9} {row['layout']:>14} {row['pass']:>9} "
                f"{row['ms']:9.4f} {row['share']:6.0%}",
                flush=True,
            )
    if args.out:
        report = {**about, "copy_bytes_per_second": bandwidth, "width": WIDTH, "repeats": args.repeats, "rows": rows}
        write(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
