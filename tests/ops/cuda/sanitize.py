"""Every CUDA kernel once, at odd sizes: for compute-sanitizer, which is too slow for the tests.

compute-sanitizer --tool memcheck  --error-exitcode 1 python tests/ops/cuda/sanitize.py
compute-sanitizer --tool racecheck --error-exitcode 1 python tests/ops/cuda/sanitize.py
"""

import torch

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.ops import backend
from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_ssm.ops.layer_norm import layer_norm_fn
from mamba_ssm.ops.linear_cross_entropy import linear_cross_entropy
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from mamba_ssm.ops.selective_state_update import selective_state_update
from mamba_ssm.ops.topk_search import window_scores
from mamba_ssm.utils.generation import InferenceParams


def rand(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    """With `last`, (B, D, L) that lie as (B, L, D)."""
    x = torch.randn(shape, device="cuda", dtype=dtype)
    return (x.transpose(1, 2).contiguous().transpose(1, 2) if last else x).requires_grad_()


def scans(dtype: torch.dtype) -> None:
    for batch, dim, length, states in [(2, 40, 33, 16), (1, 33, 700, 16), (1, 7, 40, 5), (1, 9, 40, 70)]:
        for last in (True, False):
            u, delta, z = (rand(batch, dim, length, dtype=dtype, last=last) for _ in range(3))
            B, C = (rand(batch, states, length, dtype=dtype, last=last) for _ in range(2))
            A, initial = (-torch.rand(dim, states, device="cuda")).requires_grad_(), rand(batch, dim, states)
            sequence = torch.arange(length, device="cuda").expand(batch, -1) // 17
            for seq_idx in (None, sequence):
                out, state = selective_scan_fn(
                    u, delta, A, B, C, rand(dim), z, rand(dim), True, True, initial, seq_idx=seq_idx
                )
                (out.float().sum() + state.sum()).backward()


def convolutions(dtype: torch.dtype) -> None:
    for last in (True, False):
        x = rand(2, 40, 70, dtype=dtype, last=last)
        out = causal_conv1d_fn(x, rand(40, 4), rand(40), initial_states=rand(2, 40, 3, dtype=dtype), activation="silu")
        out.float().sum().backward()


def updates(dtype: torch.dtype) -> None:
    for length in ((), (3,)):
        causal_conv1d_update(rand(3, 70, *length, dtype=dtype), rand(3, 70, 5, dtype=dtype), rand(70, 4), rand(70))
    for states in (5, 16, 130, 256):
        x, B = rand(3, 70, dtype=dtype), rand(3, states, dtype=dtype)
        selective_state_update(rand(3, 70, states), x, x, -rand(70, states).exp(), B, B, rand(70), x, rand(70), True)


def model(dtype: torch.dtype) -> None:
    config = MambaConfig(d_model=48, n_layer=2, vocab_size=333, rms_norm=True, residual_in_fp32=True)
    lm = MambaLMHeadModel(config, device="cuda", dtype=dtype)
    ids = torch.randint(0, 333, (3, 301), device="cuda")
    lm(ids).logits.float().sum().backward()
    linear_cross_entropy(rand(40, 48, dtype=dtype), rand(333, 48, dtype=dtype), ids[0, :40]).backward()
    for rows in (1, 3, 20):
        with torch.no_grad():
            params = InferenceParams(10, rows)
            lm(ids[:1].expand(rows, -1), inference_params=params)
            params.seqlen_offset = 1
            lm(ids[:1, :1].expand(rows, -1), inference_params=params)


if __name__ == "__main__":
    backend.use("cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scans(dtype)
        convolutions(dtype)
        layer_norm_fn(rand(5, 999, dtype=dtype), rand(999), rand(999), rand(5, 999), prenorm=True)[0].sum().backward()
        model(dtype)
        with torch.no_grad():
            updates(dtype)
            window_scores(rand(2, 9, 64), rand(2, 9), rand(192, 64, dtype=dtype), 32)
    torch.cuda.synchronize()
    print("done")
