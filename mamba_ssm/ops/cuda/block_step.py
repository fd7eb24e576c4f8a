"""One token through a whole Mamba block on an NVIDIA GPU: kernels/block_step.cu and block_step_state.cu tell how.

A few rows: four kernels, whose time is that of reading the weights. More: PyTorch's matrix products, and our kernels
between them. Letters: B batch, M model width, D inner channels, N state, W width of the convolution, R rank of delta.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layer_norm import layer_norm_fn
from mamba_ssm.ops.cuda.layout import multiprocessors, pointer

# Up to FEW_ROWS a matrix-vector product for all rows at once; in half precision twice as many, if M and D are at most
# NARROW: with wider ones cuBLAS wins.
FEW_ROWS, NARROW = 4, 2048
NO_NORM, RMS_NORM, LAYER_NORM = 0, 1, 2


class _Mixer(NamedTuple):
    """The weights between the norm and the output: shapes as in `block_step`."""

    in_weight: Tensor
    in_bias: Tensor | None
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_weight: Tensor
    dt_weight: Tensor
    dt_bias: Tensor | None
    A_log: Tensor
    D: Tensor
    out_weight: Tensor
    out_bias: Tensor | None


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    eps: float
    rms: bool


def block_step(
    hidden: Tensor,
    residual: Tensor | None,
    conv_state: Tensor,
    ssm_state: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    eps: float = 1e-5,
    is_rms_norm: bool = True,
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shapes and results are the reference's, without gradients.

    hidden in fp32, fp16 or bf16, and the mixer's weights with it; norm, residual, conv_state, A_log and D in any of the
    three; ssm_state in fp32. Computed in fp32. Raises BackendError for other dtypes.
    """
    weights = (in_proj_weight, in_proj_bias, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias)
    dtype = hidden.dtype
    if ssm_state.dtype != torch.float32 or dtype not in compiler.TYPES:
        raise BackendError("The CUDA step takes fp32, fp16 or bf16, and its state in fp32: use the reference back-end.")
    if any(w is not None and w.dtype != dtype for w in (*weights, out_proj_weight, out_proj_bias)):
        raise BackendError(f"The CUDA step takes weights in hidden's dtype, {dtype}: convert them.")
    mixer = _Mixer(*weights, A_log, D, out_proj_weight, out_proj_bias)
    # Not copied here: kernels may read weights before the kernels in front of them have ended.
    if not all(w is None or w.is_contiguous() for w in (*mixer, norm_weight, norm_bias)):
        raise BackendError("The CUDA step takes contiguous weights: call contiguous() on them.")
    if not (conv_state[0].is_contiguous() and ssm_state[0].is_contiguous()):
        raise BackendError("The CUDA step updates states in place: rows of a contiguous tensor, not other slices.")
    norm = _Norm(norm_weight, norm_bias, eps, is_rms_norm)
    narrow = dtype != torch.float32 and max(hidden.shape[1], D.shape[0]) <= NARROW
    if hidden.shape[0] <= (2 * FEW_ROWS if narrow else FEW_ROWS):
        return _few_rows(hidden, residual, conv_state, ssm_state, norm, mixer, residual_in_fp32)
    normed, stream = layer_norm_fn(
        hidden, norm_weight, norm_bias, residual, eps, True, residual_in_fp32, is_rms_norm=is_rms_norm
    )
    xz = F.linear(normed, mixer.in_weight, mixer.in_bias)
    states = _States(xz, conv_state, ssm_state, mixer)
    states.convolve()
    selected = F.linear(xz[:, : mixer.D.shape[0]], mixer.x_weight)
    return F.linear(states.update(selected), mixer.out_weight, mixer.out_bias), stream


def _few_rows(
    hidden: Tensor,
    residual: Tensor | None,
    conv_state: Tensor,
    ssm_state: Tensor,
    norm: _Norm,
    mixer: _Mixer,
    residual_in_fp32: bool,
) -> tuple[Tensor, Tensor]:
    hidden = hidden.contiguous()
    if residual is not None:
        residual = residual.contiguous()
        stream = torch.empty_like(residual)
    else:
        stream = hidden.new_empty(hidden.shape, dtype=torch.float32) if residual_in_fp32 else hidden
    xz = _project(
        hidden,
        mixer.in_weight,
        mixer.in_bias,
        norm=norm,
        residual=residual,
        stream=None if stream is hidden else stream,
        convolution=(conv_state, mixer.conv_weight, mixer.conv_bias),
    )
    selected = _project(xz[:, : mixer.D.shape[0]], mixer.x_weight, None)
    y = _States(xz, conv_state, ssm_state, mixer).update(selected)
    return _project(y, mixer.out_weight, mixer.out_bias), stream


def _project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: _Norm | None = None,
    residual: Tensor | None = None,
    stream: Tensor | None = None,
    convolution: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> Tensor:
    """x (B, I) -> weight x + bias (B, O), B at most 8; norm and convolution before and after it.

    ``stream`` is where x + residual goes; the convolution's state, weight and bias belong to the first D outputs.
    """
    batch = x.shape[0]
    outputs, inputs = weight.shape
    out = x.new_empty(batch, outputs)
    conv_state, conv_weight, conv_bias = convolution or (None, None, None)
    sums = residual if stream is None else stream
    addresses = x.data_ptr() | x.stride(0) * x.element_size() | weight.data_ptr() | pointer(residual) | pointer(stream)
    if norm is not None:
        addresses |= norm.weight.data_ptr() | pointer(norm.bias)
    launch, blocks, threads = _projection(
        x.device,
        x.dtype,
        None if sums is None else sums.dtype,
        None if norm is None else norm.weight.dtype,
        NO_NORM if norm is None else RMS_NORM if norm.rms else LAYER_NORM,
        None if conv_state is None else (conv_state.dtype, conv_state.shape[2]),
        batch,
        inputs,
        outputs,
        addresses % 16 == 0,
    )
    launch(
        blocks,
        threads,
        x.data_ptr(),
        pointer(residual),
        pointer(stream),
        0 if norm is None else norm.weight.data_ptr(),
        0 if norm is None else pointer(norm.bias),
        weight.data_ptr(),
        pointer(bias),
        out.data_ptr(),
        pointer(conv_state),
        pointer(conv_weight),
        pointer(conv_bias),
        x.stride(0),
        0 if conv_state is None else conv_state.stride(0),
        batch,
        outputs,
        0 if conv_state is None else conv_state.shape[1],
        0 if norm is None else _bits(norm.eps),
    )
    return out


class _Tile(NamedTuple):
    """How kernels/block_step.cu cuts a product: constants of its head."""

    vector: int
    chunks: int
    threads: int
    rows: int
    groups: int


def _tile(batch: int, inputs: int, outputs: int, vector: int, processors: int) -> _Tile:
    """`batch` is a power of two. A thread has eight loads of weights in flight, or four where x fills its registers."""
    while inputs % vector:
        vector //= 2
    pieces = -(-inputs // vector)
    chunks = -(-pieces // (640 if batch > 2 and vector == 8 else 352))
    threads = -(-pieces // chunks)
    rows = max(1, (8 if batch <= 2 else 4) // chunks)
    rows = 1 << rows.bit_length() - 1
    while rows > 1 and outputs < rows * processors * 5 // 2:  # blocks of unequal number on the multiprocessors
        rows //= 2
    threads = -(-max(threads, rows * batch) // 32) * 32
    groups = max(1, outputs // rows // (4 * processors))
    return _Tile(vector, chunks, threads, rows, groups)


@cache
def _projection(
    device: torch.device,
    dtype: torch.dtype,
    stream: torch.dtype | None,
    norm_dtype: torch.dtype | None,
    norm: int,
    convolution: tuple[torch.dtype, int] | None,
    batch: int,
    inputs: int,
    outputs: int,
    aligned: bool,
) -> tuple[Callable[..., None], int, int]:
    """The kernel, its blocks and its threads."""
    padded = 1 << (batch - 1).bit_length()
    vector = 16 // dtype.itemsize if aligned else 1
    tile = _tile(padded, inputs, outputs, vector, multiprocessors(device))
    conv_dtype, width = convolution or (dtype, 1)
    constants: dict[str, int | str | bool] = {
        "TYPE": compiler.TYPES[dtype],
        "RESIDUAL_TYPE": compiler.TYPES[stream or dtype],
        "NORM_TYPE": compiler.TYPES[norm_dtype or dtype],
        "CONV_TYPE": compiler.TYPES[conv_dtype],
        "NORM": norm,
        "CONV": convolution is not None,
        "WIDTH": width,
        "BATCH": padded,
        "INPUTS": inputs,
        "VECTOR": tile.vector,
        "CHUNKS": tile.chunks,
        "THREADS": tile.threads,
        "ROWS": tile.rows,
        "GROUPS": tile.groups,
    }
    launch = compiler.kernel("block_step.cu", "project", device, constants)
    return launch, -(-outputs // (tile.rows * tile.groups)), tile.threads


class _States:
    """The convolution and the state of one step; xz (B, 2D) is what in_proj gives."""

    def __init__(self, xz: Tensor, conv_state: Tensor, ssm_state: Tensor, mixer: _Mixer) -> None:
        self.xz, self.mixer = xz, mixer
        self.batch, self.channels = xz.shape[0], xz.shape[1] // 2
        convolution = conv_state.data_ptr() | conv_state.stride(0) * conv_state.element_size()
        self.plan = _state_plan(
            xz.device,
            xz.dtype,
            conv_state.dtype,
            mixer.A_log.dtype,
            mixer.D.dtype,
            self.batch,
            self.channels,
            mixer.dt_weight.shape[1],
            mixer.A_log.shape[1],
            conv_state.shape[2],
            (convolution | mixer.conv_weight.data_ptr()) % 16 == 0,
            (ssm_state.data_ptr() | ssm_state.stride(0) * 4 | mixer.A_log.data_ptr()) % 16 == 0,
            mixer.dt_weight.data_ptr() % 16 == 0,
        )
        self.after = (
            mixer.dt_weight.data_ptr(),
            pointer(mixer.dt_bias),
            mixer.A_log.data_ptr(),
            mixer.D.data_ptr(),
            ssm_state.data_ptr(),
        )
        self.last = (
            conv_state.data_ptr(),
            mixer.conv_weight.data_ptr(),
            pointer(mixer.conv_bias),
            self.batch,
            self.channels,
            ssm_state.stride(0),
            conv_state.stride(0),
        )

    def convolve(self) -> None:
        """Convolution and SiLU of x, in place."""
        self.plan.convolve(self.plan.convolve_blocks, 256, self.xz.data_ptr(), 0, *self.after, 0, *self.last)

    def update(self, selected: Tensor) -> Tensor:
        """selected (B, R + 2N), what x_proj gives -> y (B, D), gated. x must be convolved."""
        y = self.xz.new_empty(self.batch, self.channels)
        plan = self.plan
        plan.update(
            plan.update_blocks,
            plan.update_threads,
            self.xz.data_ptr(),
            selected.data_ptr(),
            *self.after,
            y.data_ptr(),
            *self.last,
        )
        return y


class _StatePlan(NamedTuple):
    convolve: Callable[..., None]
    convolve_blocks: int
    update: Callable[..., None]
    update_blocks: int
    update_threads: int


@cache
def _state_plan(
    device: torch.device,
    dtype: torch.dtype,
    conv_dtype: torch.dtype,
    A_dtype: torch.dtype,
    D_dtype: torch.dtype,
    batch: int,
    channels: int,
    rank: int,
    states: int,
    width: int,
    conv_aligned: bool,
    states_aligned: bool,
    rank_aligned: bool,
) -> _StatePlan:
    padded = min(8, 1 << (batch - 1).bit_length())
    tiles = -(-channels // 16) * -(-batch // padded)
    warps = 4 if tiles >= 16 * multiprocessors(device) else 1
    together = 2 if channels % 2 == 0 else 1
    constants: dict[str, int | str | bool] = {
        "TYPE": compiler.TYPES[dtype],
        "CONV_TYPE": compiler.TYPES[conv_dtype],
        "A_TYPE": compiler.TYPES[A_dtype],
        "D_TYPE": compiler.TYPES[D_dtype],
        "RANK": rank,
        "STATES": states,
        "WIDTH": width,
        "BATCH": padded,
        "WARPS": warps,
        "CONV_CHANNELS": together,
        "CONV_VECTORS": conv_aligned and width & (width - 1) == 0,
        "STATE_VECTORS": states_aligned and states % 4 == 0,
        "RANK_VECTORS": rank_aligned and rank % 8 == 0 and (rank + 2 * states) % 8 == 0,
    }
    return _StatePlan(
        compiler.kernel("block_step_state.cu", "convolve_rows", device, constants),
        batch * -(-(channels // together) // 256),
        compiler.kernel("block_step_state.cu", "update_states", device, constants),
        -(-tiles // warps),
        warps * 32,
    )


@cache
def _bits(number: float) -> int:
    return struct.unpack("i", struct.pack("f", number))[0]
