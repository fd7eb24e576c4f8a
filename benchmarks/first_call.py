"""How long a model waits for its kernels to be compiled: the first call with nothing kept, and with all kept on disk.

    python benchmarks/first_call.py --out benchmarks/results/first_call.json

A process of its own each: 130m geometry, random weights; "infer" reads 2,048 tokens and one more in fp16, "train" makes
one step of 1 x 2,048 tokens in bf16 with parameters in fp32. Reported: the first call less the second one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine, write


def infer(model: torch.nn.Module, ids: torch.Tensor) -> None:
    from mamba_ssm.utils.generation import InferenceParams

    with torch.no_grad():
        params = InferenceParams(4096, 1)
        model(ids, inference_params=params, num_last_tokens=1)
        params.seqlen_offset = ids.shape[1]
        model(ids[:, :1], inference_params=params)


def train(model: torch.nn.Module, ids: torch.Tensor) -> None:
    from mamba_ssm.ops.linear_cross_entropy import linear_cross_entropy

    with torch.autocast("cuda", torch.bfloat16):
        hidden = model.backbone(ids)
        linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, ids.flatten()).backward()


def seconds(work: str) -> float:
    """In this process: the first call less the second."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    config = MambaConfig.published("mamba-130m")
    dtype = torch.float16 if work == "infer" else torch.float32
    model = MambaLMHeadModel(config, device="cuda", dtype=dtype)
    ids = torch.randint(0, 50277, (1, 2048), device="cuda")
    # PyTorch's own start, of its libraries for matrix products, is not ours.
    weight = torch.randn(768, 768, device="cuda", dtype=torch.bfloat16)
    (weight @ weight).float().softmax(-1).sum()
    torch.cuda.synchronize()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        {"infer": infer, "train": train}[work](model, ids)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[0] - times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--one", choices=["infer", "train"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(seconds(args.one))
        return
    rows = []
    for work in ("infer", "train"):
        with tempfile.TemporaryDirectory() as cache:
            for kept in (False, True):
                run = subprocess.run(
                    [sys.executable, __file__, "--one", work],
                    env={**os.environ, "MAMBA_CACHE": cache},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                rows.append({"work": work, "kept_on_disk": kept, "seconds": float(run.stdout)})
                print(f"{work}, {'kept on disk' if kept else 'nothing kept'}: {rows[-1]['seconds']:.2f} s", flush=True)
    if args.out:
        write(args.out, {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
