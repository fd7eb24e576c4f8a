"""Compare logits with transformers' MambaForCausalLM: the same random weights, fp32, at the geometry of mamba-130m.

    python evals/transformers_parity.py [--out evals/results/transformers_parity.json]

Weights go through a folder that transformers wrote. Prefill is one call; decode is a token at a time, against
transformers' own cached decoding; chunked is a prefill in uneven pieces. Exit status 1 if a difference exceeds 1e-4.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from torch import Tensor

# transformers takes its ops from the packages of these names if it finds them: hidden, it has to use its own.
sys.modules["mamba_ssm"] = sys.modules["causal_conv1d"] = None  # type: ignore[assignment]
from transformers.models.mamba import modeling_mamba  # noqa: E402

del sys.modules["mamba_ssm"], sys.modules["causal_conv1d"]
from common import RESULTS, provenance, write  # noqa: E402

from mamba_ssm import MambaLMHeadModel  # noqa: E402
from mamba_ssm.utils.generation import InferenceParams  # noqa: E402

TARGET = 1e-4
CHUNKS = (1, 2, 7, 64, 3, 1, 50)


def transformers_model() -> modeling_mamba.MambaForCausalLM:
    """mamba-130m's sizes. Random everywhere, A and D too, so that no parameter can be missed."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=768, num_hidden_layers=24, vocab_size=50280, initializer_range=0.02)
    model = modeling_mamba.MambaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        parameter += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 or "A_log" in name else 0
    return model


def runs_its_own_ops() -> bool:
    """Whether transformers' scan, step and convolution are its own. Ours against ours would prove nothing."""
    functions = (
        modeling_mamba.mamba_selective_scan,
        modeling_mamba.mamba_selective_state_update,
        modeling_mamba.causal_conv1d_fn,
        modeling_mamba.causal_conv1d_update,
    )
    return not any(inspect.getclosurevars(f).nonlocals["is_new_implementation"] for f in functions)


def in_chunks(model: MambaLMHeadModel, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    params = InferenceParams(max_seqlen=ids.shape[1], max_batch_size=ids.shape[0])
    parts = []
    for chunk in ids.split(lengths, dim=1):
        parts.append(model(chunk, inference_params=params).logits)
        params.seqlen_offset += chunk.shape[1]
    return torch.cat(parts, dim=1)


def decode_with_transformers(model: modeling_mamba.MambaForCausalLM, ids: Tensor) -> Tensor:
    cache, parts = None, []
    for token in ids.split(1, dim=1):
        out = model(token, cache_params=cache, use_cache=True)
        cache = out.cache_params
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


@torch.no_grad()
def measure() -> dict[str, float]:
    theirs = transformers_model()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = MambaLMHeadModel.from_pretrained(folder).eval()
    ids = torch.randint(0, 50280, (2, sum(CHUNKS)))
    expected = theirs(ids).logits
    differences = {
        "prefill": ours(ids).logits - expected,
        "decode": in_chunks(ours, ids, (1,) * ids.shape[1]) - decode_with_transformers(theirs, ids),
        "chunked": in_chunks(ours, ids, CHUNKS) - expected,
    }
    return {name: value.abs().max().item() for name, value in differences.items()} | {
        "logits_standard_deviation": expected.std().item()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "transformers_parity.json")
    arguments = parser.parse_args()
    if not runs_its_own_ops():
        raise SystemExit("transformers runs this package's ops: the comparison would be of them with themselves")
    differences = measure()
    scale = differences.pop("logits_standard_deviation")
    report = provenance(arguments) | {
        "geometry": {"d_model": 768, "n_layer": 24, "vocab_size": 50280, "batch": 2, "length": sum(CHUNKS)},
        "chunks": CHUNKS,
        "logits_standard_deviation": scale,
        "max_abs_difference": differences,
        "target": TARGET,
        "passed": all(value <= TARGET for value in differences.values()),
    }
    write(arguments.out, report)
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
