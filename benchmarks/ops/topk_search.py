"""Speed of the search in a text's keys on a GPU, after a check that it is right.

    python benchmarks/ops/topk_search.py --out benchmarks/results/topk_search_gpu.json
    python benchmarks/ops/topk_search.py --small       a dry run on a machine without a GPU, of plain PyTorch

"scores" are the scores of all windows, and "push" is the search for the best 8 of a stream that is one block. Times are
medians over CUDA events, of the fastest back-end and of plain PyTorch on the same device. "share" is the bytes of the
keys, each read once, over the copy bandwidth measured in the same run.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import agree, copy_bandwidth, machine, milliseconds, write

from mamba_ssm.esi.search import Query, StreamingSearch
from mamba_ssm.ops import backend
from mamba_ssm.ops.topk_search import window_scores, window_scores_ref

STRIDE, KEPT = 32, 8
SHAPES = [(1, 32, 128, 1 << 20), (16, 32, 128, 1 << 20), (1, 32, 64, 1 << 20)]  # (B, M, R, L)
CHECKED = [(1, 32, 128, 320), (3, 70, 64, 96), (16, 5, 256, 2048)]
SMALL = [(2, 5, 16, 128)]
# Relative error of the norm: fp32 sums, except that plain PyTorch rounds products and scores to the keys' dtype.
TOLERANCE = 1e-5
TOLERANCE_OF_PLAIN = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def make(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> tuple[Query, Tensor]:
    """A query and keys (L, R) of unit vectors, the query's ones too such as dtype holds."""
    torch.manual_seed(0)
    questions, tokens, width, length = shape
    vectors = F.normalize(torch.randn(questions, tokens, width, device=device), dim=-1).to(dtype).float()
    keys = F.normalize(torch.randn(length, width, device=device), dim=-1).to(dtype)
    return Query(vectors, 20 * torch.rand(questions, tokens, device=device).softmax(-1)), keys


def check(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> bool:
    """Whether scores, cut in two blocks, agree with the reference in float64; prints the error."""
    query, keys = make(shape, dtype, device)
    head, tail = keys[:STRIDE], keys[STRIDE:]
    _, last = window_scores(query.vectors, query.weights, head, STRIDE)
    got, _ = window_scores(query.vectors, query.weights, tail, STRIDE, last)
    want, _ = window_scores_ref(query.vectors.double(), query.weights.double(), keys.double(), STRIDE)
    tolerance = TOLERANCE if device == "cuda" else TOLERANCE_OF_PLAIN[dtype]
    return agree(f"{shape} {dtype}", ["scores"], [got], [want], tolerance)


def timed(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Milliseconds, NaN in a dry run."""
    if device == "cuda":
        return milliseconds(work, repeats)
    work()
    return float("nan")


@torch.inference_mode()
def measure(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, bandwidth: float, repeats: int
) -> list[dict[str, Any]]:
    query, keys = make(shape, dtype, device)

    def scores() -> None:
        window_scores(query.vectors, query.weights, keys, STRIDE)

    def push() -> None:
        StreamingSearch(query, KEPT, STRIDE).push(keys)

    rows = []
    for name, work in (("scores", scores), ("push", push)):
        fast = timed(work, device, repeats)
        with backend.use("reference"):
            plain = timed(work, device, repeats)
        row = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "work": name, "ms": fast, "plain_ms": plain}
        share = keys.numel() * keys.element_size() / (fast * 1e-3) / bandwidth
        rows.append(row | {"keys_per_second": len(keys) / (fast * 1e-3), "share": share, "speed": plain / fast})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--small", action="store_true", help="tiny sizes, in plain PyTorch without a GPU")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        parser.error("no GPU here: add --small for a dry run")
    dtypes = (torch.bfloat16, torch.float32)
    checked = [check(*case, device) for case in itertools.product(SMALL if args.small else CHECKED, dtypes)]
    if not all(checked):
        print("the search is wrong: nothing is timed", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(args.repeats) if device == "cuda" else float("nan")
    about = machine()
    print(f"\n{about['device']}, copy bandwidth {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__}")
    print(
        f"{'(B, M, R, L)':>24} {'dtype':>9} {'work':>7} {'ms':>9} {'keys/s':>9} {'share':>6} {'plain':>9} {'speed':>6}"
    )
    rows = []
    for shape, dtype in itertools.product(SMALL if args.small else SHAPES, dtypes):
        for row in measure(shape, dtype, device, bandwidth, args.repeats):
            rows.append(row)
            print(
                f"{row['shape']!s:>24} {row['dtype']:>9} {row['work']:>7} {row['ms']:9.4f} "
                f"{row['keys_per_second']:9.2e} {row['share']:6.0%} {row['plain_ms']:9.3f} {row['speed']:6.1f}",
                flush=True,
            )
    if args.out:
        report = {**about, "copy_bytes_per_second": bandwidth, "stride": STRIDE, "repeats": args.repeats, "rows": rows}
        write(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
