"""Time of one decoding step of the whole model, as a CUDA graph, after a check that it is right.

    python benchmarks/decode.py --out benchmarks/results/decode_gpu.json
    python benchmarks/decode.py --small       a dry run on a machine without a GPU

Published geometries with random weights in fp16. A step is one token for each row of the batch: from ids to logits,
with states that move on; nothing is sampled. Before that, the logits of some steps are compared with those of the
reference back-end. "floor" is the time to read the weights once and to read and write the states once, at the copy
bandwidth measured in the same run; "original" is the original package's step on an H100, likewise as a CUDA graph.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine, write

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.ops import backend
from mamba_ssm.utils.generation import InferenceParams, update_graph_cache

# (geometry, batch) and the original's milliseconds a step.
ORIGINAL = {("130m", 1): 0.73, ("130m", 128): 0.992, ("2.8b", 1): 3.78, ("2.8b", 128): 6.40}
CHECKED_STEPS = 4
# Relative error of the norm of the logits: two ways through all layers, each rounding to half precision in its places.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def build(config: MambaConfig, dtype: torch.dtype, device: str) -> MambaLMHeadModel:
    torch.manual_seed(0)
    return MambaLMHeadModel(config, device=device, dtype=dtype).eval()


def stepper(model: MambaLMHeadModel, batch: int) -> tuple[Callable[[Tensor], Tensor], InferenceParams]:
    """A function from ids (B, 1) to logits (B, 1, V) that continues, as a CUDA graph where there is one; its states."""
    if model.lm_head.weight.is_cuda:
        cache = update_graph_cache(model, None, batch, 1, 1)
        return cache.run, cache.inference_params
    params = InferenceParams(1, batch, seqlen_offset=1)
    params.key_value_memory_dict = dict(model.allocate_inference_cache(batch, 1))
    return lambda ids: model(ids, inference_params=params, num_last_tokens=1).logits, params


def check(model: MambaLMHeadModel, step: Callable[[Tensor], Tensor], params: InferenceParams, batch: int) -> float:
    """The largest relative error of some steps' logits against the reference back-end, both from zero states."""
    for state in params.key_value_memory_dict.values():
        for part in state:
            part.zero_()
    plain = InferenceParams(1, batch, seqlen_offset=1)
    plain.key_value_memory_dict = dict(model.allocate_inference_cache(batch, 1))
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(CHECKED_STEPS):
        ids = torch.randint(model.config.vocab_size, (batch, 1), generator=generator).to(model.lm_head.weight.device)
        got = step(ids).float()
        with backend.use("reference"):
            want = model(ids, inference_params=plain, num_last_tokens=1).logits.float()
        worst = max(worst, float((got - want).norm() / want.norm()))
    return worst if worst == worst else float("inf")


def milliseconds(work: Callable[[], Any], device: str, repeats: int, times: int) -> float:
    """Median over `repeats` of the mean of `times` calls in a row."""
    found = []
    for index in range(repeats + 1):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(times):
                work()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / times)
        else:
            began = time.perf_counter()
            for _ in range(times):
                work()
            found.append((time.perf_counter() - began) * 1e3 / times)
        if index == 0:
            found.clear()  # warm-up
    return statistics.median(found)


def bandwidth(device: str, size: int) -> float:
    """Bytes that a copy moves in a second, reads and writes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / milliseconds(lambda: target.copy_(source), device, 10, 3) * 1e3


@torch.no_grad()
def measure(
    name: str, config: MambaConfig, batches: list[int], dtype: torch.dtype, device: str, copy: float, steps: int
) -> list[dict[str, Any]]:
    model = build(config, dtype, device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows = []
    for batch in batches:
        step, params = stepper(model, batch)
        error = check(model, step, params, batch)
        states = sum(m.numel() * m.element_size() for state in params.key_value_memory_dict.values() for m in state)
        ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
        taken = milliseconds(lambda run=step, ids=ids: run(ids), device, 5, steps)
        original = ORIGINAL.get((name, batch))
        rows.append(
            {
                "model": name,
                "batch": batch,
                "error": error,
                "correct": error < TOLERANCE[dtype],
                "backend": backend.choose("block_step", device, dtype).backend,
                "ms": taken,
                "floor_ms": (weights + 2 * states) / copy * 1e3,
                "original_ms": original,
                "speed": original / taken if original else None,
                "tokens_per_second": batch / taken * 1e3,
            }
        )
        show(rows[-1])
        del step, params
    return rows


def show(row: dict[str, Any]) -> None:
    against = "" if row["speed"] is None else f", original {row['original_ms']:.3f}: {row['speed']:.2f} times"
    print(
        f"{row['model']:>6} batch {row['batch']:>3} ({row['backend']}): {row['ms']:.3f} ms a step, "
        f"floor {row['floor_ms']:.3f}{against}; {row['tokens_per_second']:,.0f} tokens/s, "
        f"error {row['error']:.1e}{'' if row['correct'] else ' WRONG'}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["130m", "2.8b"], help="geometries (default: %(default)s)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 128], help="rows (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--steps", type=int, default=50, help="in a row for each time (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU, to try the script")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args(argv)
    dtype = getattr(torch, args.dtype)
    if args.small:
        device, dtype, steps = "cpu", torch.float32, 2
        models = {"small": MambaConfig(d_model=16, n_layer=2, vocab_size=100)}
        batches = [1, 3]
    elif not torch.cuda.is_available():
        print("decode: there is no CUDA device here: pass --small to try the script", file=sys.stderr)
        return 1
    else:
        device, steps = "cuda", args.steps
        models = {name: MambaConfig.published(f"mamba-{name}") for name in args.models}
        batches = args.batch
    copy = bandwidth(device, 2**20 if args.small else 2**30)
    rows = []
    for name, config in models.items():
        rows += measure(name, config, batches, dtype, device, copy, steps)
    if args.out:
        found = {
            **machine(),
            "dtype": str(dtype).removeprefix("torch."),
            "copy_bytes_per_second": copy,
            "steps": rows,
        }
        write(args.out, found)
    return 0 if all(row["correct"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
