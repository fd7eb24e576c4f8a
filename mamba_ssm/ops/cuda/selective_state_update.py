"""One token of the selective scan on an NVIDIA GPU, in one launch: kernels/selective_state_update.cu tells how."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import Plan, Signature, strides
from mamba_ssm.ops.steps import MOST_PLANS, Kind, by_heads, kind, without_numbers

THREADS = 64


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Shapes and results are the reference's; any strides, fp32, fp16 and bf16, mixed freely, computed in fp32.

    No gradients. Raises BackendError for fp64 and complex numbers.
    """
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    addresses = [0 if m is None else m.data_ptr() for m in tensors]
    misaligned = tuple([address % 16 for address in addresses[:6]])
    plan = _plan(tuple([kind(m) for m in tensors]), misaligned, dt_softplus)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if plan.blocks:
        plan.launch(plan.blocks, THREADS, *addresses, out.data_ptr(), *plan.numbers)
    return out


@lru_cache(MOST_PLANS)
def _plan(kinds: tuple[Kind | None, ...], misaligned: tuple[int, ...], softplus: bool) -> Plan:
    state, x, dt, A, B, C, D, z, bias = by_heads(*without_numbers(kinds))  # type: ignore[arg-type]
    batch, heads, dim, states = state.shape
    lanes = min(32, 1 << max(0, -(-states // 4) - 1).bit_length())

    def in_vectors(m: Tensor, misaligned: int) -> bool:
        return states % 4 == 0 and Signature(m.dtype, m.shape, m.stride(), misaligned).vectors(m.dim() - 1, 4)

    constants: dict[str, int | str | bool] = {
        "STATE_TYPE": compiler.TYPES[state.dtype],
        "X_TYPE": compiler.TYPES[x.dtype],
        "DT_TYPE": compiler.TYPES[dt.dtype],
        "A_TYPE": compiler.TYPES[A.dtype],
        "B_TYPE": compiler.TYPES[B.dtype],
        "C_TYPE": compiler.TYPES[C.dtype],
        "D_TYPE": compiler.TYPES[(x if D is None else D).dtype],
        "Z_TYPE": compiler.TYPES[(x if z is None else z).dtype],
        "BIAS_TYPE": compiler.TYPES[(x if bias is None else bias).dtype],
        "STATES": states,
        "LANES": lanes,
        "THREADS": THREADS,
        "SOFTPLUS": softplus,
        "STATE_VECTORS": in_vectors(state, misaligned[0]),
        "A_VECTORS": in_vectors(A, misaligned[3]),
        "B_VECTORS": in_vectors(B, misaligned[4]),
        "C_VECTORS": in_vectors(C, misaligned[5]),
    }
    assert kinds[0] is not None
    launch = compiler.kernel("selective_state_update.cu", "selective_state_update", kinds[0][1], constants)
    numbers = (
        *(heads, dim, heads // B.shape[1], heads // C.shape[1], *state.stride(), *strides(x, dt, A, B, C)),
        *((0, 0) if D is None else D.stride()),
        *strides(z),
        *((0, 0) if bias is None else bias.stride()),
    )
    return Plan(launch, batch * heads * -(-dim // (THREADS // lanes)), numbers)
