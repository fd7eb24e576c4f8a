"""One token of a causal convolution on an NVIDIA GPU, in one launch: kernels/causal_conv1d_update.cu tells how."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import Plan, pointer
from mamba_ssm.ops.steps import MOST_PLANS, Kind, check_convolution, kind, without_numbers

THREADS = 64
WIDTHS = (2, 3, 4)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Shapes and results are the reference's; any strides, fp32, fp16 and bf16, mixed freely, computed in fp32.

    No gradients. Raises BackendError for fp64 and for other widths than 2 to 4.
    """
    plan = _plan(kind(x), kind(conv_state), kind(weight), kind(bias), activation)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if plan.blocks:
        addresses = x.data_ptr(), conv_state.data_ptr(), weight.data_ptr(), pointer(bias), out.data_ptr()
        plan.launch(plan.blocks, THREADS, *addresses, *plan.numbers)
    return out


@lru_cache(MOST_PLANS)
def _plan(x_kind: Kind, state_kind: Kind, weight_kind: Kind, bias_kind: Kind | None, activation: str | None) -> Plan:
    x, state, weight, bias = without_numbers((x_kind, state_kind, weight_kind, bias_kind))
    assert x is not None
    assert state is not None
    assert weight is not None
    check_convolution(x, state, weight, bias, activation)
    if weight.shape[1] not in WIDTHS:
        raise BackendError(f"The CUDA convolution takes widths 2 to 4, got {weight.shape[1]}: use the reference.")
    batch, dim, length = x.shape if x.dim() == 3 else (*x.shape, 1)
    constants: dict[str, int | str | bool] = {
        "X_TYPE": compiler.TYPES[x.dtype],
        "STATE_TYPE": compiler.TYPES[state.dtype],
        "WEIGHT_TYPE": compiler.TYPES[weight.dtype],
        "BIAS_TYPE": compiler.TYPES[(weight if bias is None else bias).dtype],
        "WIDTH": weight.shape[1],
        "KEPT": state.shape[2],
        "SILU": activation is not None,
        "THREADS": THREADS,
    }
    launch = compiler.kernel("causal_conv1d_update.cu", "causal_conv1d_update", x_kind[1], constants)
    x_strides = x.stride() if x.dim() == 3 else (*x.stride(), 0)
    bias_strides = (0,) if bias is None else bias.stride()
    numbers = dim, length, *x_strides, *state.stride(), *weight.stride(), *bias_strides
    return Plan(launch, batch * -(-dim // THREADS) if length else 0, numbers)
