"""Latency and throughput of generation.

    python benchmarks/benchmark_generation_mamba_simple.py --model-name state-spaces/mamba-130m --random-weights
    python benchmarks/benchmark_generation_mamba_simple.py --model-name FOLDER --prompt "My cat wrote" --topk 0

The prompt is of random tokens, unless --prompt gives it as text. Times are medians after a run that is not counted,
which compiles kernels and, on CUDA, captures the step as a graph. "prompt" is the time to the first new token, and
"per token" the mean of those after it. "peak memory" is what tensors held on a GPU, or the whole process on a CPU.
Padding of the vocabulary is never sampled. Arguments and defaults up to --batch are the original's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mamba_ssm
from mamba_ssm.book.engine import load_tokenizer
from mamba_ssm.errors import BackendError, MambaESIError, QuestionError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model-name", default="state-spaces/mamba-130m", help="a folder or a name on the hub (default: %(default)s)")
    add("--prompt", help="text to continue, instead of random tokens; needs a tokenizer")
    add("--promptlen", type=positive, default=100, help="random tokens to read (default: %(default)s)")
    add("--genlen", type=positive, default=100, help="tokens to generate (default: %(default)s)")
    add("--temperature", type=float, default=1.0)
    add("--topk", type=int, default=1, help="1 takes the likeliest token, 0 does not limit (default: %(default)s)")
    add("--topp", type=float, default=1.0)
    add("--minp", type=float, default=0.0)
    add("--repetition-penalty", type=float, default=1.0)
    add("--batch", type=positive, default=1)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
        default="auto",
        help="of the weights; auto is float16 on CUDA and float32 on a CPU; int8 is of the large matrices, for a CPU",
    )
    add(
        "--random-weights", action="store_true", help="build the published geometry of that name; nothing is downloaded"
    )
    add("--repeats", type=positive, default=3, help="timed runs (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object, and nothing else, on standard output")
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> MambaLMHeadModel:
    """The model in evaluation mode. Raises CheckpointError, BackendError."""
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise BackendError("there is no CUDA device here: pass --device cpu, or see `mamba-esi doctor`")
    name = args.dtype if args.dtype != "auto" else "float16" if device == "cuda" else "float32"
    if name == "int8" and device != "cpu":
        raise BackendError("int8 weights are for decoding on a CPU: pass --device cpu, or another --dtype")
    dtype = torch.float32 if name == "int8" else getattr(torch, name)
    if args.random_weights:
        torch.manual_seed(0)
        model = MambaLMHeadModel(MambaConfig.published(args.model_name), device=device, dtype=dtype).eval()
    else:
        model = MambaLMHeadModel.from_pretrained(args.model_name, device=device, dtype=dtype)
    return model.to_int8() if name == "int8" else model


def prompt_ids(args: argparse.Namespace, model: MambaLMHeadModel, tokenizer: Tokenizer | None) -> Tensor:
    """(batch, length): the prompt's tokens in every row, or random ones."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (args.batch, args.promptlen), generator=generator)
    else:
        tokens = tokenizer.encode(args.prompt).ids
        if len(tokens) == 0:
            raise QuestionError("--prompt has no tokens: give some text")
        if tokens.max() >= model.config.padded_vocab_size:
            raise QuestionError("the tokenizer has tokens that the model lacks: one of the two is another model's")
        ids = torch.from_numpy(tokens).long().repeat(args.batch, 1)
    return ids.to(model.backbone.embedding.weight.device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median wall-clock time of work(), which was run before."""
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory held at once: tensors on a GPU since the last reset, or the whole process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run, as --json prints them. Times are in seconds, memory in bytes."""
    model = build(args)
    weight = model.backbone.embedding.weight
    device = weight.device
    tokenizer = None if args.prompt is None else load_tokenizer(args.model_name, model.config.vocab_size)
    ids = prompt_ids(args, model, tokenizer)
    batch, length = ids.shape

    def generate(tokens: int) -> Tensor:
        sequences = model.generate(
            ids,
            length + tokens,
            top_k=args.topk,
            top_p=args.topp,
            min_p=args.minp,
            temperature=args.temperature,
            repetition_penalty=args.repetition_penalty,
            vocab_size=model.config.vocab_size,
            cg=device.type == "cuda",
            seed=0,
        )
        assert isinstance(sequences, Tensor)
        return sequences

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    row = generate(args.genlen)[0, length:].tolist()  # not counted: compiles and captures
    prompt = seconds(lambda: generate(1), device, args.repeats)
    total = seconds(lambda: generate(args.genlen), device, args.repeats)
    # None where no token comes after the first, or so few that their time is lost in that of the prompt.
    per_token = (total - prompt) / (args.genlen - 1) if args.genlen > 1 and total > prompt else None
    kept = {m.data_ptr(): m.numel() for m in model.state_dict().values()}  # a tied head once; int8 are no parameters
    return {
        "model": args.model_name,
        "random_weights": args.random_weights,
        "parameters": sum(kept.values()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "cuda_graph": device.type == "cuda",
        "batch": batch,
        "prompt_tokens": length,
        "new_tokens": args.genlen,
        "sampling": {
            "greedy": args.topk == 1,
            "temperature": args.temperature,
            "topk": args.topk,
            "topp": args.topp,
            "minp": args.minp,
            "repetition_penalty": args.repetition_penalty,
        },
        "repeats": args.repeats,
        "seconds": {"prompt": prompt, "per_token": per_token, "total": total},
        "tokens_per_second": {
            "prompt": batch * length / prompt,
            "decoding": None if per_token is None else batch / per_token,
            "new_tokens_in_total_time": batch * args.genlen / total,
        },
        "peak_memory": peak_bytes(device),
        "text": None if tokenizer is None else tokenizer.decode(row),
        "versions": {
            "mamba_ssm": mamba_ssm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    times, rates = found["seconds"], found["tokens_per_second"]
    how = found["sampling"]
    limits = ", ".join(f"{key} {how[key]}" for key in ("temperature", "topk", "topp", "minp"))
    weights = ", random weights" if found["random_weights"] else ""
    per_token, peak = times["per_token"], found["peak_memory"]
    rows = {
        "model": f"{found['model']}{weights}, {found['parameters']:,} parameters, {found['dtype']}",
        "device": found["device"] + (", CUDA graph" if found["cuda_graph"] else f", {found['threads']} threads"),
        "generation": f"{'greedy' if how['greedy'] else limits}, repetition penalty {how['repetition_penalty']}",
        "tokens": f"batch {found['batch']}, prompt {found['prompt_tokens']:,}, new {found['new_tokens']:,}",
        "prompt": f"{times['prompt'] * 1e3:.2f} ms, {rates['prompt']:,.0f} tokens/s",
        "per token": "-" if per_token is None else f"{per_token * 1e3:.3f} ms, {rates['decoding']:,.1f} tokens/s",
        "in all": f"{times['total'] * 1e3:.2f} ms, {rates['new_tokens_in_total_time']:,.1f} new tokens/s",
        "peak memory": "-" if peak is None else f"{peak / 2**20:,.0f} MiB",
    }
    lines = [f"{name:<12} {value}" for name, value in rows.items()]
    return "\n".join([*lines, *([] if found["text"] is None else ["", found["text"]])])


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        found = measure(args)
    except (MambaESIError, ValueError) as error:  # generate raises ValueError for a temperature of 0 and the like
        print(f"benchmark_generation_mamba_simple: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if args.json else table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
