"""The selective scan on a GPU, through Triton. The mathematics and the layout are told in selective_scan_kernels.py.

Letters: B batch, D channels, L length, N state, G groups.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.gpu.launch import BLOCK_D, on_device, target_programs
from mamba_ssm.ops.gpu.selective_scan_kernels import chunk_carry_kernel, scan_backward_kernel, scan_forward_kernel
from mamba_ssm.ops.layout import empty_like_layout

MAX_STATES = 256
# Steps unrolled at once. The backward keeps a tile's states in registers: more than 4 steps of 16 states spill.
TILE = 4
# Steps between saved states: 16 costs 4 bytes a token and channel at N = 16, and 1.5 steps of recomputing a step.
SAVE_EVERY = 16
# A shorter chunk spends more on folding the carries than it wins.
MIN_CHUNK = 64


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = C_t h_t + D u_t, gated by silu(z_t).

    Source: Gu & Dao 2023, arXiv 2312.00752, algorithm 2.

    Args:
        u, delta, z: (B, D, L), any strides; views of (B, L, D) are the fast layout. fp32, fp16 or bf16, mixed freely.
        A: (D, N), real, N at most 256.
        B, C: constant (D, N), or by token, (B, N, L) or (B, G, N, L), where channel d reads group d // (D / G).
        D, delta_bias: (D,).
        delta_softplus: dt = softplus(delta + delta_bias) instead of delta + delta_bias.
        initial_state: (B, D, N), the state before the first token; zero when absent.

    Returns:
        out (B, D, L) in u's dtype and layout, or (out, last_state), last_state (B, D, N) in fp32. Everything has
        gradients, the states too. Computed in fp32.

    Raises:
        BackendError: complex A, fp64, seq_idx, more than 256 states, or tensors that are not on a GPU.
    """
    if A.is_complex() or B.is_complex() or C.is_complex():
        raise BackendError("The Triton scan takes a real A only: use the reference back-end for a complex one.")
    if A.shape[1] > MAX_STATES:
        raise BackendError(f"The Triton scan takes at most {MAX_STATES} states, got {A.shape[1]}: use the reference.")
    if seq_idx is not None:
        raise BackendError("The Triton scan takes no packed sequences: use the cuda or reference back-end.")
    if any(m is not None and m.dtype == torch.float64 for m in (u, delta, A, B, C, D, z, delta_bias, initial_state)):
        raise BackendError("The Triton scan computes in fp32: use the reference back-end for fp64.")
    if B.dim() == 3:
        B = B.unsqueeze(1)
    if C.dim() == 3:
        C = C.unsqueeze(1)
    groups = {m.shape[1] for m in (B, C) if m.dim() == 4}
    if len(groups) == 2:
        B, C = (m.repeat_interleave(max(groups) // m.shape[1], dim=1) for m in (B, C))
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    # Asked here because forward() of an autograd function sees neither no_grad nor inference mode.
    training = torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in inputs)
    out, last_state = _SelectiveScan.apply(*inputs, delta_softplus, training)
    return (out, last_state) if return_last_state else out


class _Plan:
    """How a scan of these shapes is cut into programs."""

    def __init__(self, u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
        self.batch, self.dim, self.length = u.shape
        self.states = A.shape[1]
        self.N = max(triton.next_power_of_2(self.states), 2)
        # 16 state elements a lane; with more, values spill to memory.
        self.num_warps = max(1, min(8, self.N // 16))
        self.tile = TILE if self.N <= 128 else TILE // 2
        self.groups = next((m.shape[1] for m in (B, C) if m.dim() == 4), 1)
        self.d_per_group = self.dim // self.groups
        self.blocks = self.groups * triton.cdiv(self.d_per_group, BLOCK_D)
        programs = self.batch * self.blocks
        wanted = max(1, target_programs(u, self.num_warps) // max(1, programs))
        chunk = triton.cdiv(self.length, min(wanted, triton.cdiv(self.length, MIN_CHUNK)))
        self.chunk_len = triton.cdiv(chunk, SAVE_EVERY) * SAVE_EVERY
        self.n_chunks = triton.cdiv(self.length, self.chunk_len)
        self.grid = (programs * self.n_chunks,)

    def sizes(self) -> tuple[int, ...]:
        return self.groups, self.d_per_group, self.states, self.length, self.chunk_len, self.n_chunks

    def meta(self) -> dict[str, int]:
        return {"N": self.N, "BLOCK_D": BLOCK_D, "TILE": self.tile, "num_warps": self.num_warps}

    def carries(
        self, x: Tensor, delta: Tensor, V: Tensor, A: Tensor, z: Tensor | None, bias: Tensor | None, **flags: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """What each chunk adds to the state, and its sum(dt); None when there is one chunk only."""
        if self.n_chunks == 1:
            return None, None
        carry = x.new_empty(self.batch, self.n_chunks, self.states, self.dim, dtype=torch.float32)
        decay = x.new_empty(self.batch, self.n_chunks, self.dim, dtype=torch.float32)
        chunk_carry_kernel[self.grid](
            x, delta, V, A, z, bias, carry, decay,
            x.stride(), delta.stride(), _strides(V), _stride_or_zeros(z), A.stride(), *self.sizes(),
            VARIABLE=V.dim() == 4, **flags, **self.meta(),
        )  # fmt: skip
        return carry, decay


def _strides(m: Tensor) -> tuple[int, ...]:
    """Of B or C: (batch, group, state, time), or (0, channel, state, 0) where constant."""
    return m.stride() if m.dim() == 4 else (0, *m.stride(), 0)


def _stride_or_zeros(m: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if m is None else m.stride()


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
        initial: Tensor | None,
        softplus: bool,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.softplus = softplus
        # Contiguous in N, A makes Triton spread the states over 4 lanes: few shuffles for <C, h> and for dB, dC alike.
        A = A.contiguous()
        D, bias = (None if m is None else m.contiguous() for m in (D, bias))
        batch, dim, length = u.shape
        states = A.shape[1]
        if u.numel() == 0:
            ctx.save_for_backward(u, delta, A, B, C, D, z, bias, initial, None)
            start = u.new_zeros(batch, dim, states, dtype=torch.float32) if initial is None else initial.float().clone()
            return torch.empty_like(u), start
        plan = _Plan(u, A, B, C)
        out = empty_like_layout(u)
        last = u.new_empty(batch, dim, states, dtype=torch.float32)
        saved = None
        if training:
            saved = u.new_empty(batch, triton.cdiv(length, SAVE_EVERY), states, dim, dtype=torch.float32)
        with on_device(u):
            carry, decay = plan.carries(u, delta, B, A, None, bias, REVERSE=False, SOFTPLUS=softplus)
            scan_forward_kernel[plan.grid](
                u, delta, A, B, C, D, z, bias, initial, carry, decay, out, last, saved,
                u.stride(), delta.stride(), A.stride(), _strides(B), _strides(C), _stride_or_zeros(z),
                _stride_or_zeros(initial), out.stride(), *plan.sizes(),
                SOFTPLUS=softplus, VARIABLE_B=B.dim() == 4, VARIABLE_C=C.dim() == 4, SAVE_EVERY=SAVE_EVERY,
                **plan.meta(),
            )  # fmt: skip
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, initial, saved)
        return out, last

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, bias, initial, saved = ctx.saved_tensors
        if saved is None:
            through = [None if m is None else torch.zeros_like(m) for m in (u, delta, A, B, C, D, z, bias)]
            dstart = None if initial is None or dlast is None else dlast.to(initial.dtype)
            return *through, dstart, None, None
        plan = _Plan(u, A, B, C)
        dout = torch.zeros_like(u) if dout is None else dout
        du, ddelta = empty_like_layout(u), empty_like_layout(delta)
        dz = None if z is None else empty_like_layout(z)
        fp32 = {"dtype": torch.float32, "device": u.device}
        per_chunk = (plan.batch * plan.n_chunks, plan.states, plan.dim)
        per_block = (plan.batch, plan.groups, plan.blocks // plan.groups, plan.length, plan.states)
        dA = torch.empty(per_chunk, **fp32)
        dB = torch.empty(per_block if B.dim() == 4 else per_chunk, **fp32)
        dC = torch.empty(per_block if C.dim() == 4 else per_chunk, **fp32)
        dD, dbias = (None if m is None else torch.empty(per_chunk[0], plan.dim, **fp32) for m in (D, bias))
        dinitial = None if initial is None else torch.empty(plan.batch, plan.dim, plan.states, **fp32)
        with on_device(u):
            carry, decay = plan.carries(dout, delta, C, A, z, bias, REVERSE=True, SOFTPLUS=ctx.softplus)
            scan_backward_kernel[plan.grid](
                u, delta, A, B, C, D, z, bias, saved, carry, decay,
                dout, dlast, du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
                u.stride(), delta.stride(), A.stride(), _strides(B), _strides(C), _stride_or_zeros(z), dout.stride(),
                _stride_or_zeros(dlast), du.stride(), ddelta.stride(), _stride_or_zeros(dz), *plan.sizes(),
                SOFTPLUS=ctx.softplus, VARIABLE_B=B.dim() == 4, VARIABLE_C=C.dim() == 4, SAVE_EVERY=SAVE_EVERY,
                **plan.meta(),
            )  # fmt: skip

        def summed(partial: Tensor, like: Tensor) -> Tensor:
            if like.dim() == 4:
                return partial.sum(2).to(like.dtype).transpose(2, 3)
            total = partial.sum(0)
            return (total.T if like.dim() == 2 else total).to(like.dtype)

        return (
            du,
            ddelta,
            summed(dA, A),
            summed(dB, B),
            summed(dC, C),
            None if dD is None else summed(dD, D),
            dz,
            None if dbias is None else summed(dbias, bias),
            None if dinitial is None else dinitial.to(initial.dtype),
            None,
            None,
        )
