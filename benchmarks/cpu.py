"""The whole model on a CPU against transformers' own path and llama.cpp, in the same run.

    pip install -e ".[peers]"
    python benchmarks/cpu.py --out benchmarks/results/cpu.json
    python benchmarks/cpu.py --small      a dry run

The geometry of mamba-130m with the same random weights everywhere; logits are compared before anything is timed. Times
are medians of wall-clock times. prefill: 2,048 tokens, the logits of the last one. decode: a token at a time. train:
512 tokens, forward and backward, with fewer layers, for a step of transformers' takes minutes. import: in a new
process. long: the peak memory of a process that reads a million tokens (minutes; only with --parts long).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from model import build, milliseconds
from timing import machine, write

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams

PARTS = ("import", "prefill", "decode", "train", "long")
# Of activations; "int8" is the large matrices of blocks and head alone, and decoding alone.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
LLAMA = {"fp32": ("F32",), "bf16": ("BF16", "F16"), "int8": ("Q8_0",)}
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": 5e-2}
LONG = 1 << 20


def in_turn(work: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Milliseconds of each, a round after the other, so that a machine that slows down does so for all."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            times[name].append(milliseconds(run, "cpu", repeats, warm_ups=1))
    return {name: statistics.median(taken) for name, taken in times.items()}


class Ours:
    def __init__(self, model: MambaLMHeadModel) -> None:
        self.model = model

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Tensor:
        self.params = InferenceParams(1 << 30, 1)
        logits = self.model(ids, inference_params=self.params, num_last_tokens=1).logits
        self.params.seqlen_offset = ids.shape[1]
        return logits[0, -1].float()

    @torch.inference_mode()
    def decode(self, token: Tensor) -> None:
        self.model(token, inference_params=self.params, num_last_tokens=1)
        self.params.seqlen_offset += 1

    def train(self, ids: Tensor) -> None:
        logits = self.model(ids).logits
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).backward()
        self.model.zero_grad(set_to_none=True)


class Transformers:
    """Its own path in PyTorch: what would give it other kernels is hidden from it."""

    def __init__(self, model: MambaLMHeadModel, dtype: torch.dtype) -> None:
        from transformers_drop_in import modeling

        module = modeling(hide=("mamba_ssm", "causal_conv1d"))
        c = model.config
        config = module.MambaConfig(
            hidden_size=c.d_model, num_hidden_layers=c.n_layer, vocab_size=c.padded_vocab_size, residual_in_fp32=True
        )
        self.model = module.MambaForCausalLM(config)
        state = {k.replace("embedding.weight", "embeddings.weight"): v for k, v in model.state_dict().items()}
        self.model.load_state_dict(state)
        self.model.to(dtype)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Tensor:
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        self.cache = out.cache_params
        return out.logits[0, -1].float()

    @torch.inference_mode()
    def decode(self, token: Tensor) -> None:
        self.model(token, cache_params=self.cache, use_cache=True)

    def train(self, ids: Tensor) -> None:
        self.model(ids, labels=ids).loss.backward()
        self.model.zero_grad(set_to_none=True)


class Llama:
    def __init__(self, model: MambaLMHeadModel, kind: str, folder: Path) -> None:
        import llama_cpp

        path = folder / f"{kind}.gguf"
        write_gguf(model, kind, path)
        threads = torch.get_num_threads()
        defaults = llama_cpp.llama_model_default_params()
        # Version 0.3.36 crashes on a Mamba's matrices in Q8_0 where it lays them out anew, and has no argument for it.
        defaults.use_extra_bufts = kind != "Q8_0"
        with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", return_value=defaults):
            self.llm = llama_cpp.Llama(
                str(path), n_ctx=4096, n_batch=2048, n_threads=threads, n_threads_batch=threads, verbose=False
            )

    def prefill(self, ids: Tensor) -> Tensor:
        self.llm.reset()
        self.llm._ctx.kv_cache_clear()
        self.llm.eval(ids[0].tolist())
        vocabulary = self.llm.n_vocab()
        return torch.tensor(self.llm._ctx.get_logits()[:vocabulary])

    def decode(self, token: Tensor) -> None:
        self.llm.eval([int(token)])


def write_gguf(model: MambaLMHeadModel, kind: str, path: Path) -> None:
    """The model as llama.cpp reads it: matrices in `kind`, the rest in fp32.

    As llama.cpp's own converter does, Q8_0 makes F16 of rows that its blocks of 32 numbers do not fill.
    """
    import gguf

    c = model.config
    mixer: Any = model.backbone.layers[0].mixer
    to = gguf.GGUFWriter(path, "mamba")
    to.add_context_length(1 << 20)
    to.add_embedding_length(c.d_model)
    to.add_feed_forward_length(0)
    to.add_head_count(0)
    to.add_block_count(c.n_layer)
    to.add_ssm_conv_kernel(mixer.d_conv)
    to.add_ssm_inner_size(mixer.d_inner)
    to.add_ssm_state_size(mixer.d_state)
    to.add_ssm_time_step_rank(mixer.dt_rank)
    to.add_layer_norm_rms_eps(1e-5)
    to.add_vocab_size(c.padded_vocab_size)
    to.add_tokenizer_model("llama")
    to.add_token_list([f"t{i}" for i in range(c.padded_vocab_size)])
    to.add_token_scores([0.0] * c.padded_vocab_size)
    to.add_token_types([1] * c.padded_vocab_size)

    def add(name: str, tensor: Tensor, matrix: bool = False) -> None:
        data = tensor.detach().float().contiguous().numpy()
        fits = kind != "Q8_0" or tensor.shape[-1] % 32 == 0
        quantised = gguf.GGMLQuantizationType[(kind if fits else "F16") if matrix else "F32"]
        to.add_tensor(name, gguf.quants.quantize(data, quantised), raw_dtype=quantised)

    add("token_embd.weight", model.backbone.embedding.weight, matrix=True)
    add("output_norm.weight", model.backbone.norm_f.weight)
    for i, layer in enumerate(model.backbone.layers):
        m: Any = layer.mixer
        add(f"blk.{i}.attn_norm.weight", layer.norm.weight)  # type: ignore[arg-type]
        for name, linear in [("in", m.in_proj), ("x", m.x_proj), ("dt", m.dt_proj), ("out", m.out_proj)]:
            add(f"blk.{i}.ssm_{name}.weight", linear.weight, matrix=True)
        add(f"blk.{i}.ssm_dt.bias", m.dt_proj.bias)
        add(f"blk.{i}.ssm_conv1d.weight", m.conv1d.weight.squeeze(1))
        add(f"blk.{i}.ssm_conv1d.bias", m.conv1d.bias)
        add(f"blk.{i}.ssm_a", -torch.exp(m.A_log))
        add(f"blk.{i}.ssm_d", m.D)
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()


@contextmanager
def peers(model: MambaLMHeadModel, name: str) -> Iterator[dict[str, Any]]:
    """All that run the model in dtype `name`, ours first; model: in fp32."""
    dtype = DTYPES[name]
    copy = MambaLMHeadModel(model.config, dtype=dtype)
    copy.eval().load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        theirs = {f"llama.cpp {kind}": Llama(model, kind, Path(folder)) for kind in LLAMA[name]}
        theirs = {"transformers": Transformers(model, dtype), **theirs}
        yield {"ours": Ours(copy.to_int8() if name == "int8" else copy), **theirs}


def agree(them: dict[str, Any], ids: Tensor, tolerance: float) -> bool:
    """Whether all give our logits."""
    ours = them["ours"].prefill(ids)
    right = True
    for name, peer in them.items():
        error = float((peer.prefill(ids) - ours).norm() / ours.norm())
        print(
            f"{'ok   ' if error < tolerance else 'WRONG'} {name}: relative error of the logits {error:.1e}", flush=True
        )
        right &= error < tolerance
    return right


def measure_import() -> list[dict[str, Any]]:
    def run(code: str) -> float:
        return milliseconds(lambda: subprocess.run([sys.executable, "-c", code], check=True), "cpu", 7, warm_ups=1)

    alone, ours = run("import torch"), run("from mamba_ssm import Mamba, MambaLMHeadModel")
    print(f"import: torch {alone:.0f} ms, mamba_ssm {ours:.0f} ms: {ours / alone:.2f} times")
    return [{"part": "import", "torch_ms": alone, "mamba_ssm_ms": ours, "ratio": ours / alone}]


def measure_long(config: MambaConfig, length: int) -> list[dict[str, Any]]:
    """In this very process, so nothing else may have run in it."""
    ours = Ours(build(config, "cpu", torch.bfloat16).eval())
    ids = torch.randint(config.vocab_size, (1, length))
    start = time.perf_counter()
    ours.prefill(ids)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"long: {length:,} tokens in {seconds:.0f} s, {length / seconds:,.0f} tokens/s, peak {peak / 1e9:.2f} GB")
    return [{"part": "long", "tokens": length, "seconds": seconds, "tokens_per_second": length / seconds, "peak": peak}]


def compare(part: str, dtype: str, tokens: int, ms: dict[str, float]) -> dict[str, Any]:
    row = {"part": part, "dtype": dtype, "tokens": tokens, "ms": ms}
    row["ratio"] = {name: taken / ms["ours"] for name, taken in ms.items() if name != "ours"}
    told = ", ".join(f"{name} {tokens / taken * 1e3:,.1f}" for name, taken in ms.items())
    ratios = ", ".join(f"{ratio:.2f} times {name}" for name, ratio in row["ratio"].items())
    print(f"{part} {dtype}, tokens/s: {told}; {ratios}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--train-layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = MambaConfig.published("mamba-130m")
    prompt, lesson, decoded, long = 2048, 512, 24, LONG
    if args.small:
        config, (prompt, lesson, decoded, long) = MambaConfig(d_model=32, n_layer=2, vocab_size=100), (20, 12, 3, 9000)
    rows = measure_long(config, long) if "long" in args.parts else []
    rows += measure_import() if "import" in args.parts else []
    model = build(config, "cpu", torch.float32)
    ids = torch.randint(config.vocab_size, (1, prompt))
    for name in DTYPES:
        if not ({"decode"} if name == "int8" else {"prefill", "decode"}) & set(args.parts):
            continue
        with peers(model, name) as them:
            if not agree(them, ids[:, :33], TOLERANCE[name]):
                return 1
            if "prefill" in args.parts and name != "int8":
                work = {who: partial(peer.prefill, ids) for who, peer in them.items()}
                rows.append(compare("prefill", name, prompt, in_turn(work, args.rounds)))
            if "decode" in args.parts:
                for peer in them.values():
                    peer.prefill(ids[:, :16])
                work = {who: partial(peer.decode, ids[:, :1]) for who, peer in them.items()}
                rows.append(compare("decode", name, 1, in_turn(work, args.rounds, decoded)))
    if "train" in args.parts:
        config.n_layer = min(config.n_layer, args.train_layers)
        model = build(config, "cpu", torch.float32)
        them = {"ours": Ours(model), "transformers": Transformers(model, torch.float32)}
        work = {who: partial(peer.train, ids[:, :lesson]) for who, peer in them.items()}
        rows.append(compare("train", "fp32", lesson, in_turn(work, 1)) | {"layers": config.n_layer})
    if args.out:
        write(args.out, {**machine(), "threads": args.threads, "rounds": args.rounds, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
