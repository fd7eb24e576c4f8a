"""One step of the selective scan on a GPU, through Triton, for generation.

Letters: B batch, H heads, D channels (of a head), N state, G groups of heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.gpu.launch import on_device
from mamba_ssm.ops.gpu.selective_scan_kernels import LOG2E, load_fp32, step_size
from mamba_ssm.ops.steps import by_heads

# mypy: disable-error-code="assignment,var-annotated"


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
    """h <- exp(dt A) h + dt B x in place, and y = C h + D x, gated by silu(z) (arXiv 2312.00752, algorithm 2).

    Args:
        state: (B, D, N), or (B, H, D, N), any strides; updated in place.
        x, dt, z: (B, D), or (B, H, D).
        A: (D, N), or (H, D, N).
        B, C: (B, N), or (B, G, N), where head h reads group h // (H / G).
        D, dt_bias: (D,), or (H, D).
        dt_softplus: dt = softplus(dt + dt_bias) instead of dt + dt_bias.

    Returns:
        y, of x's shape and dtype. Computed in fp32, without gradients. Raises BackendError for fp64 or complex A.
    """
    if A.is_complex() or torch.float64 in (x.dtype, state.dtype):
        raise BackendError("The Triton step takes no complex A and no fp64: use the reference back-end.")
    shape = x.shape
    state, x, dt, A, B, C, D, z, dt_bias = by_heads(state, x, dt, A, B, C, D, z, dt_bias)
    batch, heads, dim, states = state.shape
    out = torch.empty(batch, heads, dim, dtype=x.dtype, device=x.device)
    if out.numel():
        N = triton.next_power_of_2(states)
        BLOCK_D = max(1, 512 // N)
        with on_device(x):
            state_update_kernel[(triton.cdiv(dim, BLOCK_D), heads, batch)](
                state, x, dt, A, B, C, D, z, dt_bias, out,
                *((0, 0, 0) if m is None else m.stride() for m in (state, x, dt, A, B, C, D, z, dt_bias)),
                heads // B.shape[1], heads // C.shape[1], heads, dim, states,
                SOFTPLUS=dt_softplus, N=N, BLOCK_D=BLOCK_D, num_warps=2,
            )  # fmt: skip
    return out.view(shape)


@triton.jit
def state_update_kernel(
    state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, out_ptr,
    state_strides, x_strides, dt_strides, A_strides, B_strides, C_strides, D_strides, z_strides, bias_strides,
    heads_per_B, heads_per_C, heads, dim, states,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of channels and states; fp32, as an error in the state would stay for the rest of the text."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    d_mask, n_mask = d < dim, n < states
    mask = d_mask[:, None] & n_mask[None, :]
    x = load_fp32(x_ptr + row * x_strides[0] + head * x_strides[1] + d * x_strides[2], d_mask)
    dt = load_fp32(dt_ptr + row * dt_strides[0] + head * dt_strides[1] + d * dt_strides[2], d_mask)
    if bias_ptr is not None:
        dt += load_fp32(bias_ptr + head * bias_strides[0] + d * bias_strides[1], d_mask)
    dt = step_size(dt, d_mask, SOFTPLUS)
    A = load_fp32(A_ptr + head * A_strides[0] + d[:, None] * A_strides[1] + n[None, :] * A_strides[2], mask)
    B = load_fp32(B_ptr + row * B_strides[0] + head // heads_per_B * B_strides[1] + n * B_strides[2], n_mask)
    C = load_fp32(C_ptr + row * C_strides[0] + head // heads_per_C * C_strides[1] + n * C_strides[2], n_mask)
    state_at = state_ptr + row * state_strides[0] + head * state_strides[1]
    state_at += d[:, None] * state_strides[2] + n[None, :] * state_strides[3]
    h = tl.exp2(A * LOG2E * dt[:, None]) * load_fp32(state_at, mask) + (dt * x)[:, None] * B[None, :]
    tl.store(state_at, h.to(state_ptr.dtype.element_ty), mask=mask)
    y = tl.sum(h * C[None, :], axis=1)
    if D_ptr is not None:
        y += x * load_fp32(D_ptr + head * D_strides[0] + d * D_strides[1], d_mask)
    if z_ptr is not None:
        z = load_fp32(z_ptr + row * z_strides[0] + head * z_strides[1] + d * z_strides[2], d_mask)
        y *= z * tl.sigmoid(z)
    tl.store(out_ptr + (row * heads + head) * dim + d, y.to(out_ptr.dtype.element_ty), mask=d_mask)
