"""transformers' MambaForCausalLM on this package's ops against its own path in PyTorch.

    python benchmarks/transformers_drop_in.py --device cpu --out benchmarks/results/transformers_drop_in_cpu.json
    python benchmarks/transformers_drop_in.py --device cuda --out benchmarks/results/transformers_drop_in_h100.json
    python benchmarks/transformers_drop_in.py --small       a dry run

The geometry of mamba-130m with the same random weights twice, in fp32 on a CPU and in bf16 on a GPU. Before anything is
timed, logits, logits of decoding and gradients of a short input are compared in fp32. Times are medians of wall-clock
times, from an idle device until it is idle again.

prefill: a prompt with its cache, and the logits of the last token. decode: generate() from one token, for each new
token. train: forward, backward and AdamW. A step of transformers' own path takes some ten minutes on a CPU (23 s a
layer were measured on one core): give --repeats 1 there.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from model import milliseconds
from timing import agree, machine, write

from mamba_ssm.integrations.transformers import use_ops
from mamba_ssm.ops import backend

MODELING = "transformers.models.mamba.modeling_mamba"
PARTS = ("prefill", "decode", "train")
TOLERANCE = 1e-4


class Sizes(NamedTuple):
    config: dict[str, Any]
    checked: tuple[int, int]  # rows, tokens
    prefill: int
    train: int
    decode: int


BASE = Sizes(
    {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280, "initializer_range": 0.02},
    (2, 33),
    2048,
    512,
    32,
)
SMALL = Sizes({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 60}, (2, 9), 24, 12, 3)


def modeling(hide: tuple[str, ...] = ()) -> Any:
    """A copy of transformers' module by itself; hidden packages are as if they were not installed."""
    before = {name: sys.modules.pop(name) for name in (MODELING, *hide) if name in sys.modules}
    sys.modules.update(dict.fromkeys(hide))  # type: ignore[arg-type]
    try:
        return importlib.import_module(MODELING)
    finally:
        for name in (MODELING, *hide):
            sys.modules.pop(name, None)
        sys.modules.update(before)


def build(sizes: Sizes, device: str) -> tuple[Any, Any, str]:
    """transformers' own model, the same one on our ops, and how it came by them."""
    theirs = modeling(hide=("mamba_ssm", "causal_conv1d"))
    ours = modeling()
    how = "found by transformers"
    if not hasattr(ours, "mamba_selective_scan"):
        sys.modules[MODELING], how = ours, "use_ops()"
        use_ops()
    torch.manual_seed(0)
    config = transformers.MambaConfig(**sizes.config)
    own, fast = (module.MambaForCausalLM(config).to(device).eval() for module in (theirs, ours))
    with torch.no_grad():
        for name, parameter in own.named_parameters():  # so that none can be missed
            parameter += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 or "A_log" in name else 0
    fast.load_state_dict(own.state_dict())
    return own, fast, how


def outputs(model: Any, ids: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Logits, logits of decoding, and gradients; and how often this package's scan ran."""
    scans, module = 0, backend.module

    def counting(op: str, *args: Any) -> Any:
        nonlocal scans
        scans += op == "selective_scan"
        return module(op, *args)

    backend.module = counting
    try:
        with torch.no_grad():
            logits = model(ids).logits
        how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        steps = torch.stack(model.generate(ids, output_logits=True, return_dict_in_generate=True, **how).logits)
        model.train()(ids, labels=ids).loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    finally:
        backend.module = module
        model.eval().zero_grad(set_to_none=True)
    return (logits, steps, gradients), scans


def check(own: Any, fast: Any, sizes: Sizes, device: str) -> bool:
    """Whether both give the same, and our scan ran in `fast` alone."""
    ids = torch.randint(1, sizes.config["vocab_size"], sizes.checked, device=device)
    want, own_scans = outputs(own, ids)
    got, scans = outputs(fast, ids)
    apart = scans > 0 and own_scans == 0
    if not apart:
        print(f"WRONG our scan ran {own_scans} times in transformers' own model, and {scans} times in the other")
    names = ("logits", "decode", "gradients")
    return agree("transformers", names, got, [m.double() for m in want], TOLERANCE) and apart


@torch.no_grad()
def run_prefill(model: Any, ids: Tensor) -> None:
    model.lm_head(model.backbone(ids, use_cache=True)[0][:, -1:].to(model.lm_head.weight.dtype))


def run_train(model: Any, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run_decode(model: Any, ids: Tensor, tokens: int) -> None:
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)


def work_of(part: str, model: Any, ids: Tensor) -> Callable[[], None]:
    if part == "prefill":
        return partial(run_prefill, model, ids)
    if part == "decode":
        return partial(run_decode, model, ids[:, :1], ids.shape[1])
    return partial(run_train, model, torch.optim.AdamW(model.parameters(), lr=1e-4), ids)


def measure(own: Any, fast: Any, sizes: Sizes, device: str, repeats: int, parts: list[str]) -> list[dict[str, Any]]:
    rows = []
    for part in parts:
        length = getattr(sizes, part)
        ids = torch.randint(1, sizes.config["vocab_size"], (1, length), device=device)
        row: dict[str, Any] = {"part": part, "batch": 1, "tokens": length}
        for label, model in (("transformers_ms", own), ("ours_ms", fast)):
            model.train(part == "train")
            taken = milliseconds(work_of(part, model, ids), device, repeats, warm_ups=1)
            row[label] = taken / length if part == "decode" else taken
        row["ratio"] = row["transformers_ms"] / row["ours_ms"]
        rows.append(row)
        told = f"transformers {row['transformers_ms']:.2f} ms, ours {row['ours_ms']:.2f} ms: {row['ratio']:.2f} times"
        print(f"{part:>8} {length:>5} tokens: {told}", flush=True)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("transformers_drop_in: there is no CUDA device here: pass --device cpu", file=sys.stderr)
        return 1
    torch.backends.cudnn.allow_tf32 = False  # transformers' own convolution would round to 10 bits in the check
    transformers.utils.logging.set_verbosity_error()
    sizes = SMALL if args.small else BASE
    own, fast, how = build(sizes, args.device)
    if not check(own, fast, sizes, args.device):
        return 1
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    rows = measure(own.to(dtype), fast.to(dtype), sizes, args.device, args.repeats, args.parts)
    if args.out:
        head = {**machine(), "transformers": transformers.__version__, "ops": how, "threads": torch.get_num_threads()}
        chosen = {op: backend.choose(op, args.device, dtype).backend for op in backend.OPS}
        head |= {"dtype": str(dtype).removeprefix("torch."), "repeats": args.repeats, "backends": chosen}
        write(args.out, head | {"geometry": sizes.config, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
