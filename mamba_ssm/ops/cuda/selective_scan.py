"""The selective scan on an NVIDIA GPU, in CUDA C++: kernels/selective_scan_forward.cu and .._backward.cu tell how.

Letters: B batch, D channels, L length, N state, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import Signature, multiprocessors, pointer, signature
from mamba_ssm.ops.layout import empty_like_layout

MAX_STATES = 256
WARPS = 4  # of a block: as many as a multiprocessor has schedulers, so that each gets its share
CHUNK, MIN_CHUNK = 1024, 160  # steps of a chunk of time; the shorter ones only until the GPU is full


class _Pass(NamedTuple):
    """Blocks that a multiprocessor holds, and which share of them is enough not to cut the length in chunks.

    Chunks cost a walk of their own, which pays where a pass would leave the GPU emptier than that. Measured.
    """

    blocks: int
    enough: float
    rounds: int  # a GPU full of blocks each, at most


FORWARD, BACKWARD = _Pass(5, 0.26, 3), _Pass(3, 0.6, 5)


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
    """Shapes and results are the reference's, for real A, N at most 256, and B and C by token.

    u, delta, z, B and C in fp32, fp16 or bf16, mixed freely, any strides; out has u's layout. Computed in fp32. All
    inputs have gradients. Raises BackendError for what it does not take.
    """
    if A.is_complex() or B.is_complex() or C.is_complex() or B.dim() == 2 or C.dim() == 2:
        raise BackendError("The CUDA scan takes a real A, and B and C by token: use the triton or reference back-end.")
    if A.shape[1] > MAX_STATES:
        raise BackendError(f"The CUDA scan takes at most {MAX_STATES} states, got {A.shape[1]}: use the reference.")
    if any(m is not None and m.dtype == torch.float64 for m in (u, delta, A, B, C, D, z, delta_bias, initial_state)):
        raise BackendError("The CUDA scan computes in fp32: use the reference back-end for fp64.")
    B, C = (m.unsqueeze(1) if m.dim() == 3 else m for m in (B, C))
    if B.shape[1] != C.shape[1]:
        groups = max(B.shape[1], C.shape[1])
        B, C = (m.repeat_interleave(groups // m.shape[1], dim=1) for m in (B, C))
    A = A.float().contiguous()
    D, delta_bias, initial_state = (
        None if m is None else m.float().contiguous() for m in (D, delta_bias, initial_state)
    )
    seq_idx = None if seq_idx is None else seq_idx.int().contiguous()
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    # Asked here because forward() of an autograd function sees neither no_grad nor inference mode.
    if torch.is_grad_enabled() and any(m is not None and m.requires_grad for m in inputs):
        out, last_state = _SelectiveScan.apply(*inputs, seq_idx, delta_softplus)
    else:
        out, last_state, _ = forward(*inputs, seq_idx, delta_softplus, save=False)
    return (out, last_state) if return_last_state else out


class _Cut(NamedTuple):
    """How kernels/scan_tile.cuh cuts the work: constants of its head; sub: steps that a backward keeps in registers."""

    lanes: int
    warps: int
    tile: int
    sub: int


def _cut(states: int) -> _Cut:
    if states <= 32:
        return _Cut(lanes=8, warps=WARPS, tile=32, sub=4)
    if states <= 64:
        return _Cut(lanes=16, warps=WARPS, tile=32, sub=8)
    return _Cut(lanes=16, warps=1, tile=16, sub=8)


def _chunks(blocks: int, length: int, slots: int, kind: _Pass) -> int:
    """Into how many chunks of time to cut the length, for so many blocks and room for so many at once."""
    if blocks >= kind.enough * slots:
        return 1
    if 2 * blocks >= 0.9 * slots:
        return min(2, max(1, length // MIN_CHUNK))
    most = max(length // CHUNK, min(length // MIN_CHUNK, slots // blocks))
    most = min(most, kind.rounds * slots // blocks)

    def fullness(chunks: int) -> float:
        rounds = blocks * chunks / slots
        return rounds / math.ceil(rounds)

    # The fullest last round, and of about equal ones the shortest chunks, which end together.
    return max(range(1, max(most, 1) + 1), key=lambda c: (round(25 * fullness(c)), c))


def _padded_states(cut: _Cut, states: int) -> int:
    of_lane = 1
    while of_lane * cut.lanes < states:
        of_lane *= 2
    return of_lane * cut.lanes


class _Plan:
    """How one kind of call is compiled and launched: for tensors (B, D, L) by name, and B and C (B, G, N, L).

    Strides along time are constants of the kernel: a model has few of them, and addresses then cost no arithmetic.
    """

    def __init__(
        self,
        kind: _Pass,
        device: torch.device,
        states: int,
        tensors: tuple[tuple[str, Signature | None], ...],
        B: Signature,
        C: Signature,
        flags: tuple[tuple[str, int | bool], ...],
    ) -> None:
        by_name = dict(tensors)
        u = by_name["u"]
        assert u is not None
        self.device, self.states = device, states
        self.batch, self.dim, self.length = u.shape
        self.groups = B.shape[1]
        self.cut = cut = _cut(states)
        self.padded = _padded_states(cut, states)
        group_dim = self.dim // self.groups
        self.group_blocks = -(-group_dim // (cut.warps * 64 // cut.lanes))
        blocks = self.batch * self.groups * self.group_blocks
        slots = kind.blocks * multiprocessors(device)
        chunk = -(-self.length // _chunks(blocks, self.length, slots, kind))
        chunk_length = -(-chunk // cut.tile) * cut.tile
        self.chunks = -(-self.length // chunk_length)
        self.blocks = blocks * self.chunks
        owned = cut.tile * 2 // cut.lanes
        own = 2 if u.stride[1] <= u.stride[2] and owned >= 4 else 1
        axis, count = (1, 2) if own == 2 else (2, owned)
        whole = (group_dim if own == 2 else self.length) % count == 0
        of_lane = self.padded // cut.lanes
        self.constants: dict[str, int | str | bool] = {
            "STATES": states,
            "LANES": cut.lanes,
            "WARPS": cut.warps,
            "BLOCKS": kind.blocks if states <= 16 else 1,
            "TILE": cut.tile,
            "OWN": own,
            **{f"{name.upper()}_LAYOUT": own if x and whole and x.vectors(axis, count) else 0 for name, x in tensors},
            **{f"{n.upper()}_TYPE": compiler.TYPES[(by_name[n] or u).dtype] for n in ("u", "delta", "z")},
            **{f"{name}_TYPE": compiler.TYPES[m.dtype] for name, m in (("B", B), ("C", C))},
            **{f"{name}_LAYOUT": _states_layout(m, of_lane) for name, m in (("B", B), ("C", C))},
            "U_STEP": u.stride[2],
            "Z_STEP": (by_name["z"] or u).stride[2],
            "B_STEP": B.stride[3],
            "C_STEP": C.stride[3],
            "HAS_Z": by_name["z"] is not None,
            "SAME": all(x.stride == u.stride for name, x in tensors if x and name not in ("z", "dz")),
            "SAME_Z": len({x.stride for name, x in tensors if x and name in ("z", "dz")}) <= 1,
            **dict(flags),
        }
        strides = [s for _, x in tensors for s in (x.stride if x else (0, 0, 0))]
        sizes = (self.batch, self.dim, group_dim, self.length, chunk_length, self.chunks)
        self.numbers = (*strides, *B.stride, *C.stride, *sizes)

    def run(self, file: str, name: str, pointers: Iterable[Tensor | None]) -> None:
        launch = compiler.kernel(file, name, self.device, self.constants)
        launch(self.blocks, self.cut.warps * 32, *map(pointer, pointers), *self.numbers)

    def chunk_buffers(self, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """carry (B, chunks, D, N) and decay (B, chunks, D); None when there is one chunk only."""
        if self.chunks == 1:
            return None, None
        carry = like.new_empty(self.batch, self.chunks, self.dim, self.states, dtype=torch.float32)
        return carry, like.new_empty(self.batch, self.chunks, self.dim, dtype=torch.float32)


_plan = cache(_Plan)


def _plan_for(
    kind: _Pass, A: Tensor, B: Tensor, C: Tensor, flags: dict[str, int | bool], **tensors: Tensor | None
) -> _Plan:
    signatures = tuple((name, None if x is None else signature(x)) for name, x in tensors.items())
    return _plan(kind, A.device, A.shape[1], signatures, signature(B), signature(C), tuple(flags.items()))


def _states_layout(m: Signature, of_lane: int) -> int:
    """Of B or C (B, G, N, L)."""
    if m.shape[2] % of_lane == 0 and m.vectors(2, of_lane):
        return 2
    return 1 if m.stride[3] == 1 else 0


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    sequence: Tensor | None,
    softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """out, last state, and with `save` the states that `backward` starts from. A, D, bias, initial fp32, contiguous."""
    batch, dim, length = u.shape
    states = A.shape[1]
    out = empty_like_layout(u)
    last = A.new_empty(batch, dim, states)
    if u.numel() == 0:
        return out, last.zero_() if initial is None else last.copy_(initial), None
    tile = _cut(states).tile
    flags = {"SOFTPLUS": softplus, "PACKED": sequence is not None, "SAVE_EVERY": tile}
    plan = _plan_for(FORWARD, A, B, C, flags, u=u, delta=delta, z=z, out=out)
    saved = A.new_empty(batch, -(-length // tile), dim, states) if save else None
    pointers = (u, delta, A, B, C, D, z, bias, initial, sequence, out, last, saved, *plan.chunk_buffers(A))
    if plan.chunks > 1:
        plan.run("selective_scan_forward.cu", "scan_chunks", pointers)
    plan.run("selective_scan_forward.cu", "scan_forward", pointers)
    return out, last, saved


class Gradients(NamedTuple):
    """Of u, delta, z: in their dtypes and layouts. dB, dC: (B, G, N, L), fp32. The others: fp32. out: made again."""

    du: Tensor
    ddelta: Tensor
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    dz: Tensor | None
    dbias: Tensor | None
    dinitial: Tensor | None
    out: Tensor | None


def backward(
    dout: Tensor,
    dlast: Tensor | None,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    sequence: Tensor | None,
    softplus: bool,
    dz: Tensor | None = None,
    again: bool = False,
    in_place: bool = False,
) -> Gradients:
    """The gradients of `forward`, which saved the states. dz: where to write it. again: also make `out` again.

    in_place: du and ddelta take the places of dout and delta, which every block reads before it writes them.
    """
    du, ddelta = (dout, delta) if in_place else (empty_like_layout(u), empty_like_layout(delta))
    if z is not None and dz is None:
        dz = empty_like_layout(z)
    out = empty_like_layout(u) if again and z is not None else None
    atomic = not torch.are_deterministic_algorithms_enabled()
    flags = {
        "SOFTPLUS": softplus,
        "PACKED": sequence is not None,
        "SUB": _cut(A.shape[1]).sub,
        "ATOMIC": atomic,
    }
    plan = _plan_for(BACKWARD, A, B, C, flags, u=u, delta=delta, z=z, dout=dout, du=du, ddelta=ddelta, dz=dz, out=out)
    parts = 1 if atomic else plan.batch * plan.chunks
    shapes = (
        (parts, plan.dim, plan.states),
        (1 if atomic else plan.group_blocks, 2, plan.batch, plan.groups, plan.length, plan.padded),
        (parts, plan.dim if D is not None else 0),
        (parts, plan.dim if bias is not None else 0),
    )
    dA, dBC, dD, dbias = _one_buffer(A, shapes, zero=atomic)
    dinitial = None if initial is None else A.new_empty(initial.shape)
    made = (du, ddelta, dz, out, dA, dBC, dD, dbias, dinitial, *plan.chunk_buffers(A))
    pointers = (u, delta, A, B, C, D, z, bias, saved, sequence, dout, dlast, *made)
    if plan.chunks > 1:
        plan.run("selective_scan_backward.cu", "scan_chunks", pointers)
    plan.run("selective_scan_backward.cu", "scan_backward", pointers)
    dA, dBC, dD, dbias = (m.sum(0) if len(m) > 1 else m.view(m.shape[1:]) for m in (dA, dBC, dD, dbias))
    dB, dC = dBC[..., : plan.states].transpose(-1, -2)
    return Gradients(
        du,
        ddelta,
        dA,
        dB,
        dC,
        None if D is None else dD,
        dz,
        None if bias is None else dbias,
        dinitial,
        out,
    )


def _one_buffer(like: Tensor, shapes: tuple[tuple[int, ...], ...], zero: bool) -> Sequence[Tensor]:
    """Tensors of these shapes, each from a multiple of 16 bytes on, that one launch sets to zero."""
    sizes = [-(-math.prod(shape) // 4) * 4 for shape in shapes]
    buffer = like.new_zeros(sum(sizes)) if zero else like.new_empty(sum(sizes))
    return [part[: math.prod(s)].view(s) for part, s in zip(buffer.split(sizes), shapes, strict=True)]


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
        sequence: Tensor | None,
        softplus: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.softplus = softplus
        out, last, saved = forward(u, delta, A, B, C, D, z, bias, initial, sequence, softplus, save=True)
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, initial, sequence, saved)
        return out, last

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, bias, initial, sequence, saved = ctx.saved_tensors
        if saved is None:
            dinitial = None if initial is None or dlast is None else dlast
            zeros = [None if m is None else torch.zeros_like(m) for m in (u, delta, A, B, C, D, z, bias)]
            return *zeros, dinitial, None, None
        dout = torch.zeros_like(u) if dout is None else dout
        dlast = None if dlast is None else dlast.contiguous()
        g = backward(dout, dlast, saved, u, delta, A, B, C, D, z, bias, initial, sequence, ctx.softplus)
        dB, dC = g.dB.to(B.dtype), g.dC.to(C.dtype)
        return g.du, g.ddelta, g.dA, dB, dC, g.dD, g.dz, g.dbias, g.dinitial, None, None
