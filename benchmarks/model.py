"""Speed and memory of the whole model on one GPU: a training step, prefill, and a prefill of a million tokens.

    python benchmarks/model.py --out benchmarks/results/h100 --profile
    python benchmarks/model.py --small       a dry run on a machine without a GPU

Published geometries with random weights. Before anything is timed, logits of a short input are compared with those of
the reference back-end. Times are medians of wall-clock times, from an idle device until it is idle again. "original" is
the original package on an H100 80GB. With --out, each part writes FOLDER/model_PART.json, and with --profile a table of
the device's time by kernel.

train: AMP in bf16, parameters in fp32, fused AdamW, cross-entropy without the whole logits. "share" is 6 operations for
each token and parameter of a matrix product, over the 990 TFLOP/s of an H100's dense bf16.
prefill: weights in fp16, logits of the last token. Short inputs also as a CUDA graph, replayed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine, write

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.ops import backend
from mamba_ssm.ops.linear_cross_entropy import linear_cross_entropy
from mamba_ssm.training.throughput import matrix_parameters
from mamba_ssm.utils.generation import InferenceParams

PEAK_FLOPS = 990e12
CHECKED_TOKENS = (2, 33)
# Relative error of the norm of the logits: two ways through all layers, each rounding to half precision in its places.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Sizes(NamedTuple):
    """What is measured. Milliseconds and bytes of the original, where there are any, beside each shape."""

    models: dict[str, MambaConfig]
    train: dict[tuple[str, int, int], tuple[float, float] | None]  # (model, batch, length)
    prefill: dict[tuple[str, int, int], float | None]
    graph_tokens: int  # the longest input that is also replayed as a CUDA graph
    long: tuple[str, int, tuple[int, ...]]  # model, tokens of a chunk, lengths
    repeats: int


PUBLISHED = Sizes(
    models={name: MambaConfig.published(f"mamba-{name}") for name in ("130m", "370m", "1.4b", "2.8b")},
    train={
        ("130m", 16, 2048): (208.8, 34.6e9),
        ("130m", 4, 8192): (215.9, 34.6e9),
        ("370m", 16, 2048): None,
        ("1.4b", 8, 2048): None,
    },
    prefill={
        ("130m", 1, 100): 23.6,
        ("130m", 128, 100): 36.1,
        ("130m", 1, 2048): 29.6,
        ("130m", 1, 131072): 171.8,
        ("2.8b", 1, 100): 70.0,
        ("2.8b", 128, 100): 363.6,
        ("2.8b", 1, 2048): 51.1,
        ("2.8b", 1, 65536): 1031.9,
    },
    graph_tokens=2048,
    long=("130m", 65536, (262144, 1048576)),
    repeats=10,
)
SMALL = Sizes(
    models={"small": MambaConfig(d_model=16, n_layer=2, vocab_size=100)},
    train={("small", 2, 12): None},
    prefill={("small", 1, 10): None, ("small", 2, 20): None},
    graph_tokens=0,
    long=("small", 16, (32, 64)),
    repeats=2,
)


def build(config: MambaConfig, device: str, dtype: torch.dtype) -> MambaLMHeadModel:
    torch.manual_seed(0)
    return MambaLMHeadModel(config, device=device, dtype=dtype)


def random_ids(model: MambaLMHeadModel, batch: int, length: int, device: str) -> Tensor:
    return torch.randint(model.config.vocab_size, (batch, length), device=device)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], Any], device: str, repeats: int, warm_ups: int = 3) -> float:
    """Median wall-clock time of work()."""
    times = []
    for index in range(warm_ups + repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if index >= warm_ups:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, int | None]]:
    """The most bytes of tensors held at once inside the `with`, under "peak_bytes"; None on a CPU."""
    found: dict[str, int | None] = {"peak_bytes": None}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()


@torch.no_grad()
def check(name: str, model: MambaLMHeadModel, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Logits of a short input, whole and in two chunks, against the reference back-end. dtype: of the products."""
    ids = random_ids(model, *CHECKED_TOKENS, device)
    half = ids.shape[1] // 2
    with torch.autocast(device, dtype=dtype, enabled=model.lm_head.weight.dtype != dtype):
        with backend.use("reference"):
            want = model(ids).logits.float()
        whole = model(ids).logits.float()
        params = InferenceParams(ids.shape[1], len(ids))
        parts = []
        for part in (ids[:, :half], ids[:, half:]):
            parts.append(model(part, inference_params=params).logits.float())
            params.seqlen_offset += part.shape[1]
    errors = {
        how: float((got - want).norm() / want.norm())
        for how, got in (("whole", whole), ("chunks", torch.cat(parts, 1)))
    }
    right = all(e < TOLERANCE[dtype] for e in errors.values())
    told = ", ".join(f"{how} {error:.1e}" for how, error in errors.items())
    print(f"{'ok   ' if right else 'WRONG'} {name} {dtype}: relative error of the logits, {told}", flush=True)
    return {"model": name, "dtype": str(dtype).removeprefix("torch."), "errors": errors, "correct": right}


def train_step(model: MambaLMHeadModel, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """ids (B, L + 1)."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        hidden = model.backbone(ids[:, :-1])
        loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def train(sizes: Sizes, device: str, profile: Path | None) -> dict[str, Any]:
    checks: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for name, config in sizes.models.items():
        shapes = {shape: peer for shape, peer in sizes.train.items() if shape[0] == name}
        if not shapes:
            continue
        model = build(config, device, torch.float32).train()
        checks.append(check(name, model, device, torch.bfloat16))
        if not checks[-1]["correct"]:
            break
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
        for (_, batch, length), peer in shapes.items():
            ids = random_ids(model, batch, length + 1, device)
            step = partial(train_step, model, optimizer, ids)
            with peak_memory(device) as memory:
                taken = milliseconds(step, device, sizes.repeats)
            flops = 6 * matrix_parameters(model) * batch * length
            row = {"model": name, "batch": batch, "length": length, "ms": taken, **memory}
            row |= {"tokens_per_second": batch * length / taken * 1e3, "share": flops / (taken * 1e-3) / PEAK_FLOPS}
            original_ms, original_bytes = peer or (None, None)
            rows.append(row | {"original_ms": original_ms, "original_peak_bytes": original_bytes})
            show(rows[-1], f"train, {row['share']:.1%} of 990 TFLOP/s")
            if profile and len(rows) == 1:
                write_profile(step, device, profile / "model_train_kernels.txt")
    return {"checks": checks, "rows": rows}


def replayed(work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """work() as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


@torch.no_grad()
def prefill(sizes: Sizes, device: str, profile: Path | None) -> dict[str, Any]:
    dtype = torch.float16 if device == "cuda" else torch.float32
    checks: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for name, config in sizes.models.items():
        model = build(config, device, dtype).eval()
        checks.append(check(name, model, device, dtype))
        if not checks[-1]["correct"]:
            break
        shapes = {shape: peer for shape, peer in sizes.prefill.items() if shape[0] == name}
        for (_, batch, length), peer in shapes.items():
            ids = random_ids(model, batch, length, device)

            def work(ids: Tensor = ids, model: MambaLMHeadModel = model) -> Tensor:
                return model(ids, num_last_tokens=1).logits

            ways: list[tuple[str, Callable[[], Any]]] = [("eager", work)]
            if length <= sizes.graph_tokens:
                ways.append(("graph", work))
            for way, run in ways:
                with peak_memory(device) as memory:
                    timed = run if way == "eager" else replayed(run).replay
                    taken = milliseconds(timed, device, sizes.repeats)
                    del timed
                row = {"model": name, "batch": batch, "length": length, "way": way, "ms": taken, **memory}
                rows.append(row | {"tokens_per_second": batch * length / taken * 1e3, "original_ms": peer})
                show(rows[-1], f"prefill, {way}")
            if profile and name == next(iter(sizes.models)) and (batch, length) == list(shapes)[-1][1:]:
                write_profile(work, device, profile / "model_prefill_kernels.txt")
        if name == sizes.long[0]:
            rows += long_prefill(sizes, model, device)
        del model
    return {"checks": checks, "rows": rows}


def long_prefill(sizes: Sizes, model: MambaLMHeadModel, device: str) -> list[dict[str, Any]]:
    """In chunks, each of which continues the one before; ids come from the host's memory as they are needed."""
    name, chunk, lengths = sizes.long
    rows = []
    for length in lengths:
        ids = random_ids(model, 1, length, "cpu")

        def work(ids: Tensor = ids) -> None:
            params = InferenceParams(ids.shape[1], 1)
            for part in ids.split(chunk, dim=1):
                model(part.to(device), inference_params=params, num_last_tokens=1)
                params.seqlen_offset += part.shape[1]

        work(ids[:, : 2 * chunk])
        with peak_memory(device) as memory:
            taken = milliseconds(work, device, repeats=1, warm_ups=0)
        row = {"model": name, "batch": 1, "length": length, "way": f"chunks of {chunk}", "ms": taken, **memory}
        rows.append(row | {"tokens_per_second": length / taken * 1e3, "original_ms": None})
        show(rows[-1], f"prefill, chunks of {chunk}")
    return rows


def show(row: dict[str, Any], what: str) -> None:
    memory = "" if row["peak_bytes"] is None else f", {row['peak_bytes'] / 1e9:.2f} GB"
    if row.get("original_peak_bytes"):
        memory += f" (original {row['original_peak_bytes'] / 1e9:.1f})"
    peer = row["original_ms"]
    against = "" if peer is None else f", original {peer:.1f}: {peer / row['ms']:.2f} times"
    print(
        f"{row['model']:>6} {row['batch']:>3} x {row['length']:<8} {row['ms']:9.2f} ms{against}; "
        f"{row['tokens_per_second']:,.0f} tokens/s{memory}; {what}",
        flush=True,
    )


def write_profile(work: Callable[[], Any], device: str, path: Path) -> None:
    """The device's time by kernel (on a CPU by operation) in one work()."""
    on_gpu = device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    wait(device)
    with torch.profiler.profile(activities=[activity]) as profiler:
        work()
        wait(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = [
        ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count, event.key)
        for event in profiler.key_averages()
        if event.device_type == kind and not getattr(event, "is_user_annotation", False)
    ]
    whole = sum(ms for ms, _, _ in found) or float("nan")  # nothing is recorded where CUPTI is not to be had
    lines = [f"{whole:.3f} ms in all", f"{'ms':>9} {'share':>6} {'calls':>6}  kernel"]
    lines += [f"{ms:9.3f} {ms / whole:6.1%} {calls:6}  {name[:140]}" for ms, calls, name in sorted(found, reverse=True)]
    path.write_text("\n".join(lines) + "\n")


PARTS = {"train": train, "prefill": prefill}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--profile", action="store_true", help="also write the device's time by kernel to --out")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a folder for the results")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU, to try the script")
    args = parser.parse_args(argv)
    if args.profile and args.out is None:
        parser.error("--profile writes to --out: give a folder")
    if not args.small and not torch.cuda.is_available():
        print("model: there is no CUDA device here: pass --small to try the script", file=sys.stderr)
        return 1
    device, sizes = ("cpu", SMALL) if args.small else ("cuda", PUBLISHED)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    right = True
    with backend.use("reference" if args.small else None):
        backends = {op: backend.choose(op, device, torch.bfloat16).backend for op in backend.OPS}
        for part in args.parts:
            found = PARTS[part](sizes, device, args.out if args.profile else None)
            right = right and all(c["correct"] for c in found["checks"])
            if args.out:
                report = {**machine(), "backends": backends, "repeats": sizes.repeats, **found}
                write(args.out / f"model_{part}.json", report)
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
