"""One token, or some, of a causal convolution on a CPU: a block of channels, whose last inputs are in the cache.

Letters: B batch, D channels, L length, W width, S inputs that are kept.
"""

from functools import lru_cache
from typing import Any

import torch
from numba import carray
from torch import Tensor

from mamba_ssm.ops.cpu.arithmetic import KINDS, floats, gather, scatter, sigmoid
from mamba_ssm.ops.cpu.kernel import kernel, record, thread, thread_count, threads_for, use_wide_vectors
from mamba_ssm.ops.cpu.steps import slide
from mamba_ssm.ops.steps import MOST_PLANS, Kind, check_convolution, kind, without_numbers

BLOCK = 256  # channels
SIZES = "batch dim length taps kept silu x_kind state_kind weight_kind bias_kind"
STRIDES = "x_b x_d x_t state_b state_d state_s weight_d weight_w bias_d"
UPDATE = record(f"x state weight bias out {SIZES} {STRIDES}")


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Shapes and results are the reference's, computed in fp32; no gradients."""
    threads, scratch, fields = _plan(kind(x), kind(conv_state), kind(weight), kind(bias), activation)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    update(
        threads,
        scratch,
        x=x.data_ptr(),
        state=conv_state.data_ptr(),
        weight=weight.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        out=out.data_ptr(),
        **fields,
    )
    return out


@lru_cache(MOST_PLANS)
def _plan(
    x_kind: Kind, state_kind: Kind, weight_kind: Kind, bias_kind: Kind | None, activation: str | None
) -> tuple[int, int, dict[str, int]]:
    """Threads, numbers of scratch, and the fields of the record but for addresses."""
    x, state, weight, bias = without_numbers((x_kind, state_kind, weight_kind, bias_kind))
    assert x is not None
    assert state is not None
    assert weight is not None
    check_convolution(x, state, weight, bias, activation)
    batch, dim, length = x.shape if x.dim() == 3 else (*x.shape, 1)
    taps, kept = weight.shape[1], state.shape[2]
    kinds = [KINDS[m.dtype] for m in (x, state, weight, weight if bias is None else bias)]
    sizes = (batch, dim, length, taps, kept, activation is not None, *kinds)
    strides = (
        *(x.stride() if x.dim() == 3 else (*x.stride(), 0)),
        *(*state.stride(), *weight.stride()),
        *((0,) if bias is None else bias.stride()),
    )
    fields = dict(zip(f"{SIZES} {STRIDES}".split(), (*sizes, *strides), strict=True))
    items = batch * -(-dim // BLOCK)
    return threads_for(items, length * BLOCK), (kept + taps + 2) * BLOCK, fields


@kernel(UPDATE)
def update(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), UPDATE)[0]
    W, K = p.taps, p.kept
    blocks = -(-p.dim // BLOCK)
    S = floats(p.scratch + thread(p) * p.scratch_bytes, (K + W + 2) * BLOCK)
    past, weight = S[: K * BLOCK], S[K * BLOCK : (K + W) * BLOCK]
    bias, x = S[(K + W) * BLOCK : (K + W + 1) * BLOCK], S[(K + W + 1) * BLOCK :]
    for item in range(thread(p), p.batch * blocks, thread_count(p)):
        d, b = item % blocks * BLOCK, item // blocks
        w = min(BLOCK, p.dim - d)
        state_at = b * p.state_b + d * p.state_d
        gather(past, p.state, state_at, w, K, p.state_kind, p.state_d, p.state_s)
        gather(weight, p.weight, d * p.weight_d, w, W, p.weight_kind, p.weight_d, p.weight_w)
        if p.bias != 0:
            gather(bias, p.bias, d * p.bias_d, w, 1, p.bias_kind, p.bias_d, 1)
        for t in range(p.length):
            gather(x, p.x, b * p.x_b + d * p.x_d + t * p.x_t, w, 1, p.x_kind, p.x_d, 1)
            if W == 4 and K == 4:  # the common case with counts that LLVM knows
                slide(past, weight, x, w, 4, 4)
            else:
                slide(past, weight, x, w, K, W)
            if p.bias != 0:
                for c in range(w):
                    x[c] += bias[c]
            if p.silu != 0:
                for c in range(w):
                    x[c] *= sigmoid(x[c])
            scatter(p.out, (b * p.dim + d) * p.length + t, x, w, 1, p.x_kind, p.length, 1)
        scatter(p.state, state_at, past, w, K, p.state_kind, p.state_d, p.state_s)
