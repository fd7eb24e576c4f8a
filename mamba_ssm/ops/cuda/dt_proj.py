"""The projection of dt on an NVIDIA GPU, in CUDA C++: kernels/dt_proj.cu tells how.

Letters: T tokens, R rank of dt, D channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import multiprocessors

DTYPES = (torch.float16, torch.bfloat16)
MOST_RANK = 256
SHORTEST_RUN = 32  # tokens of a block, which first loads its part of the weight


def takes(dt: Tensor, weight: Tensor) -> bool:
    """Whether `dt_proj` takes these: else `dt @ weight.t()` is the way."""
    return (
        dt.dtype in DTYPES
        and weight.dtype == dt.dtype
        and weight.shape[1] == dt.shape[-1]
        and 0 < dt.shape[-1] <= MOST_RANK
        and dt.shape[-1] % 8 == 0
        and weight.is_contiguous()
        and weight.data_ptr() % 16 == 0
        and dt.data_ptr() % 16 == 0
        and dt.stride(-1) == 1
        and dt.dim() > 1
        and dt.stride(-2) % 8 == 0
        and _in_rows(dt)
    )


def dt_proj(dt: Tensor, weight: Tensor) -> Tensor:
    """delta = dt @ weight.T, (..., D) (arXiv 2312.00752, section 3.6); sums in fp32, no gradients.

    Args:
        dt: (..., R), fp16 or bf16, R a multiple of 8 up to 256. May be a slice of a wider tensor: rows lie one stride
            apart, a multiple of 8, and each starts at a multiple of 16 bytes.
        weight: (D, R), contiguous, in dt's dtype.

    Raises BackendError for what `takes` refuses.
    """
    if not takes(dt, weight):
        raise BackendError(
            f"The CUDA projection of dt takes fp16 or bf16, and ranks up to {MOST_RANK} that are multiples of 8, "
            f"aligned to 16 bytes, got {dt.dtype} {tuple(dt.shape)} and {weight.dtype} {tuple(weight.shape)}: "
            "use dt @ weight.T."
        )
    delta = dt.new_empty(*dt.shape[:-1], weight.shape[0])
    if delta.numel():
        project(dt.view(-1, dt.shape[-1]), weight, delta)
    return delta


def project(dt: Tensor, weight: Tensor, delta: Tensor) -> None:
    """`dt_proj` of dt (T, R), into delta (T, D), contiguous and 16 bytes aligned."""
    tokens, dim = dt.shape[0], weight.shape[0]
    plan = _plan(dt.dtype, dt.shape[1], dim, dt.device)
    runs = max(1, min(plan.runs, tokens // SHORTEST_RUN))
    run = -(-tokens // runs)
    plan.launch(
        plan.blocks * -(-tokens // run),
        plan.threads,
        dt.data_ptr(),
        weight.data_ptr(),
        delta.data_ptr(),
        dt.stride(0),
        tokens,
        dim,
        run,
        plan.blocks,
    )


def _in_rows(dt: Tensor) -> bool:
    """Whether all of dt's rows lie one stride apart."""
    shape, stride = dt.shape, dt.stride()
    return all(stride[i] == shape[i + 1] * stride[i + 1] or shape[i] == 1 for i in range(dt.dim() - 2))


class _Cut(NamedTuple):
    """How kernels/dt_proj.cu cuts the work."""

    channels: int  # of a warp
    warps: int  # of a block, at most
    blocks: int  # of a multiprocessor
    tokens: int  # of a tile


def _cut(rank: int) -> _Cut:
    """Registers hold channels * rank numbers of the weight for each warp, and shared memory three tiles of dt."""
    if rank <= 64:
        return _Cut(64, 8, 2, 64)
    if rank <= 160:
        return _Cut(32, 16, 1, 64 if rank <= 96 else 48)
    return _Cut(32, 8, 1, 32 if rank <= 224 else 16)


class _Plan(NamedTuple):
    """A compiled kernel and how it is launched."""

    launch: Any
    threads: int
    blocks: int  # that share their tokens
    runs: int  # of tokens that the GPU holds at once


@cache
def _plan(dtype: torch.dtype, rank: int, dim: int, device: torch.device) -> _Plan:
    cut = _cut(rank)
    blocks = -(-dim // (cut.warps * cut.channels))
    warps = -(-dim // (blocks * cut.channels))  # no more than the channels need
    constants: dict[str, int | str | bool] = {
        "TYPE": compiler.TYPES[dtype],
        "RANK": rank,
        "CHANNELS": cut.channels,
        "WARPS": warps,
        "BLOCKS": cut.blocks,
        "TOKENS": cut.tokens,
        "VECTORS": dim % 8 == 0,
    }
    launch = compiler.kernel("dt_proj.cu", "dt_proj", device, constants)
    return _Plan(launch, 32 * warps, blocks, max(1, cut.blocks * multiprocessors(device) // blocks))
