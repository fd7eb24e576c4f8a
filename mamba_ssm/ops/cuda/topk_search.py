"""Scores of windows on an NVIDIA GPU: kernels/topk_search.cu tells how.

Letters: B questions, M question tokens, L text tokens, R search width, W windows.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import multiprocessors, pointer

WARPS = 4
WARPS_OF_A_MULTIPROCESSOR = {2: 12, 4: 8}  # that run at once, by the bytes of a number in keys
LEAST_PAIRS = 2  # of half windows; a range computes one half window again
MAX_TOKENS = 2048


def window_scores(
    query_vectors: Tensor, query_weights: Tensor, keys: Tensor, stride: int, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Shapes are the reference's; keys in fp32, fp16 or bf16. Products and sums, and all results, are fp32.

    Raises BackendError for more than 2,048 question tokens and for other dtypes.
    """
    scores, _, last = _search(query_vectors, query_weights, keys, stride, None, before)
    return scores, last


def window_scores_above(
    query_vectors: Tensor,
    query_weights: Tensor,
    keys: Tensor,
    stride: int,
    floor: Tensor,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `window_scores`."""
    scores, gains, last = _search(query_vectors, query_weights, keys, stride, floor, before)
    assert gains is not None
    return scores, gains, last


def _search(
    query_vectors: Tensor,
    query_weights: Tensor,
    keys: Tensor,
    stride: int,
    floor: Tensor | None,
    before: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    questions, tokens, width = query_vectors.shape
    if keys.dtype not in compiler.TYPES:
        raise BackendError(f"The CUDA search takes no keys in {keys.dtype}: use the reference back-end.")
    if tokens > MAX_TOKENS:
        raise BackendError(
            f"The CUDA search takes at most {MAX_TOKENS} question tokens, got {tokens}: use the reference."
        )
    query_vectors = query_vectors.to(keys.dtype)
    if missing := -width % (16 // keys.element_size()):
        query_vectors, keys, width = F.pad(query_vectors, (0, missing)), F.pad(keys, (0, missing)), width + missing
    query_vectors = query_vectors.contiguous()
    keys = keys if _in_vectors(keys) and stride * keys.stride(-2) < 1 << 30 else keys.contiguous()
    query_weights = query_weights.float().contiguous()
    before = None if before is None else before.float().contiguous()
    floor = None if floor is None else floor.float().contiguous()

    halves = keys.shape[-2] // stride
    windows = halves if before is not None else halves - 1
    warps = WARPS_OF_A_MULTIPROCESSOR[keys.element_size()] * multiprocessors(keys.device)
    of_a_question = max(1, warps // questions)
    pairs = max(LEAST_PAIRS, -(-(windows // of_a_question + 2) // 2))
    ranges = max(1, -(-(halves - 1) // (2 * pairs - 1)))
    scores = keys.new_empty(questions, windows, dtype=torch.float32)
    gains = None if floor is None else torch.empty_like(scores)
    last = keys.new_empty(questions, tokens, dtype=torch.float32)
    constants = _constants(compiler.TYPES[keys.dtype], tokens, width, stride, floor is not None)
    launch = compiler.kernel("topk_search.cu", "topk_search", keys.device, constants)
    launch(
        -(-questions * ranges // WARPS),
        WARPS * 32,
        *map(pointer, (query_vectors, query_weights, keys, before, floor, scores, gains, last)),
        keys.stride(0) if keys.dim() == 3 else 0,
        keys.stride(-2),
        *(questions, tokens, halves, pairs, ranges),
    )
    return scores, gains, last


def _in_vectors(keys: Tensor) -> bool:
    """Whether each key can be loaded 16 bytes at a time."""
    size = keys.element_size()
    aligned = keys.data_ptr() % 16 == 0 and all(s * size % 16 == 0 for s in keys.stride()[:-1])
    return aligned and keys.stride(-1) == 1


@cache
def _constants(kind: str, tokens: int, width: int, stride: int, above: bool) -> dict[str, int | str | bool]:
    room = max(32, 1 << (tokens - 1).bit_length())  # few variants for questions of many lengths
    return {"TYPE": kind, "TOKENS": room, "WIDTH": width, "STRIDE": stride, "ABOVE": above}
