"""A matrix times 9 to 256 vectors in half precision on an NVIDIA GPU: kernels/project_rows.cu tells how.

Letters: B batch, I inputs, O outputs, D channels, W width of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_ssm.ops.cuda import compiler
from mamba_ssm.ops.cuda.layout import multiprocessors, pointer

MOST_ROWS = 256  # beyond it cuBLAS is better
STEP = 64  # columns of a stage
KIB = 1024
# Shared memory of a block; what has less than the largest is a GPU for graphics.
SHARED = {(8, 0): 160 * KIB, (8, 7): 160 * KIB, (9, 0): 224 * KIB, (10, 0): 224 * KIB, (10, 3): 224 * KIB}
LEAST_SHARED = 96 * KIB


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether `project_rows` can do it: half precision, rows of whole 16-byte vectors."""
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[0] <= MOST_ROWS
        and weight.shape[1] % 8 == 0
        and x.stride(1) == 1
        and x.stride(0) % 8 == 0
        and (x.data_ptr() | weight.data_ptr()) % 16 == 0
    )


def project_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, convolution: tuple[Tensor, Tensor, Tensor | None] | None = None
) -> Tensor:
    """x (B, I), weight (O, I), bias (O) in fp16 or bf16 -> x weight^T + bias (B, O), summed in fp32.

    convolution: state (B, D, W), which moves on in place, weight (D, W) and bias (D). The first D of O = 2D outputs
    then go through one step of it and SiLU. Takes what `takes` says, and a contiguous weight.
    """
    batch = x.shape[0]
    outputs, inputs = weight.shape
    out = x.new_empty(batch, outputs)
    conv_state, conv_weight, conv_bias = convolution or (None, None, None)
    kind = None
    if conv_state is not None and conv_weight is not None:
        _, channels, width = conv_state.shape
        addresses = conv_state.data_ptr() | conv_state.stride(0) * conv_state.element_size() | conv_weight.data_ptr()
        vectors = addresses % 16 == 0 and channels % 2 == 0 and width & (width - 1) == 0
        kind = _Convolution(conv_state.dtype, channels, width, vectors)
    launch, blocks, threads = _plan(x.device, x.dtype, batch, inputs, outputs, kind)
    launch(
        blocks,
        threads,
        x.data_ptr(),
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
    )
    return out


class _Convolution(NamedTuple):
    dtype: torch.dtype
    channels: int
    width: int
    vectors: bool


class Tile(NamedTuple):
    """How kernels/project_rows.cu cuts a product: constants of its head."""

    rows: int
    outputs: int
    warps_m: int
    warps_n: int
    warps_k: int
    cluster: int
    stages: int


def choose_tile(
    batch: int, inputs: int, outputs: int, convolves: bool, processors: int, shared: int, most_cluster: int
) -> Tile:
    """The quickest by an estimate: in a clock, a multiprocessor gets 26 bytes from L2 and does 900 multiply-adds."""
    steps = -(-inputs // STEP)
    padded = min(128, max(16, 1 << (batch - 1).bit_length()))

    def clocks(tile: Tile) -> float:
        part = -(-steps // tile.cluster)
        blocks = -(-batch // tile.rows) * -(-outputs // tile.outputs) * tile.cluster
        loaded = (tile.rows + tile.outputs) * part * STEP * 2
        ranks = tile.cluster * tile.warps_k
        exchanged = tile.rows * tile.outputs * 4 * (ranks - 1) / ranks * (2 if tile.cluster > 1 else 0.5)
        start = 1500 + (700 if tile.cluster > 1 else 0)
        one = start + max(loaded / 26, tile.rows * tile.outputs * part * STEP / 900) + exchanged / 26
        return -(-blocks // processors) * one

    def tiles() -> Iterator[Tile]:
        for rows in (16, 32, 64, 128):
            for wide in (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192):
                stage = (rows + wide) * STEP * 2
                # Two blocks a multiprocessor, of this kernel or of the next one, where that leaves enough in flight.
                budget = 72 * KIB if rows * wide <= 8192 else 108 * KIB
                stages = min(8, max(min(4, shared // stage), budget // stage))
                warps = _warps(rows, wide)
                if rows > padded or warps is None or stages < 2 or (convolves and wide % 16):
                    continue
                for cluster in (1, 2, 4, 8):
                    # Eight blocks, each alone on its multiprocessor, may find no room at the same time.
                    if cluster <= min(steps, most_cluster, 4 if rows * wide > 8192 else 8):
                        yield Tile(rows, wide, *warps, cluster, max(2, min(stages, -(-steps // cluster) + 1)))

    return min(tiles(), key=clocks)


def _warps(rows: int, outputs: int) -> tuple[int, int, int] | None:
    """Over rows, outputs and inputs: what reads least of shared memory with at most 96 sums a thread."""
    count = 8 if rows * outputs >= 4096 else 4
    found = [
        (m, count // m // k, k)
        for k in (1, 2)
        for m in (1, 2, 4, 8)
        if m * k <= count
        and rows % (16 * m) == 0
        and outputs % (8 * (count // m // k)) == 0
        and rows * outputs * k <= 96 * 32 * count
    ]
    return min(found, key=lambda w: w[1] * rows + w[0] * outputs, default=None)


@cache
def _plan(
    device: torch.device, dtype: torch.dtype, batch: int, inputs: int, outputs: int, convolution: _Convolution | None
) -> tuple[Callable[..., None], int, int]:
    """The kernel, its blocks and its threads."""
    # The emulator can do all that the newest can.
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    shared, most_cluster = SHARED.get(capability, LEAST_SHARED), 8 if capability >= (9, 0) else 1
    tile = choose_tile(batch, inputs, outputs, convolution is not None, multiprocessors(device), shared, most_cluster)
    convolves = convolution or _Convolution(dtype, outputs, 1, False)
    constants: dict[str, int | str | bool] = {
        "TYPE": compiler.TYPES[dtype],
        "CONV": convolution is not None,
        "CONV_TYPE": compiler.TYPES[convolves.dtype],
        "WIDTH": convolves.width,
        "CONV_VECTORS": convolves.vectors,
        "PAIRS": convolves.channels % 2 == 0,
        "INPUTS": inputs,
        "TILE_M": tile.rows,
        "TILE_N": tile.outputs,
        "WARPS_M": tile.warps_m,
        "WARPS_N": tile.warps_n,
        "WARPS_K": tile.warps_k,
        "CLUSTER": tile.cluster,
        "STAGES": tile.stages,
    }
    launch = compiler.kernel("project_rows.cu", "project_rows", device, constants)
    blocks = -(-batch // tile.rows) * -(-outputs // tile.outputs) * tile.cluster
    return launch, blocks, tile.warps_m * tile.warps_n * tile.warps_k * 32
