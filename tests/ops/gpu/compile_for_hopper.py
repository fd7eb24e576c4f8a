"""Compile every kernel for an H100 or H200 as the ops would launch it, on any machine. Prints a line a kernel.

The interpreter accepts much that the compiler does not: loop variables that change type, constexprs assigned twice.
"""

import contextlib
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mamba_ssm.ops.gpu import causal_conv1d, layer_norm, selective_scan, selective_state_update


class Hopper:
    """Stands in for the driver: names the target, launches nothing."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead(kernel: Any, grid: tuple[int, ...]) -> Any:
    def launch(*args: Any, **options: Any) -> None:
        compiled = kernel.warmup(*args, grid=grid, **options)
        print(f"{kernel.fn.__name__}: {len(compiled.asm['cubin'])} bytes", flush=True)

    return launch


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def channel_last(batch: int, dim: int, length: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(batch, length, dim, dtype=dtype).transpose(1, 2).requires_grad_()


def scans() -> None:
    for batch, dim, length, states in [(8, 512, 64, 16), (1, 32, 515, 16), (1, 40, 130, 5), (1, 32, 130, 256)]:
        u, B = channel_last(batch, dim, length), channel_last(batch, states, length)
        A, D, initial = leaf(dim, states), leaf(dim), leaf(batch, dim, states)
        out, last = selective_scan.selective_scan_fn(u, u, A, B, B, D, u, D, True, True, initial)
        (out.sum() + last.sum()).backward()
    u, A = leaf(1, 64, 200), leaf(64, 16)
    selective_scan.selective_scan_fn(u, u, A, A, leaf(1, 2, 16, 200)).sum().backward()


def convolutions() -> None:
    x, weight, bias, initial = channel_last(2, 64, 40), leaf(64, 4), leaf(64), leaf(2, 64, 3)
    causal_conv1d.causal_conv1d_fn(x, weight, bias, activation="silu").sum().backward()
    seq = torch.zeros(2, 40, dtype=torch.int32)
    causal_conv1d.causal_conv1d_fn(x, weight, None, seq, initial, activation="silu").sum().backward()


def norms() -> None:
    x = leaf(4, 768, dtype=torch.bfloat16)
    y, stream = layer_norm.layer_norm_fn(x, leaf(768), None, leaf(4, 768), prenorm=True, is_rms_norm=True)
    (y.sum() + stream.sum()).backward()
    layer_norm.layer_norm_fn(x, leaf(768), leaf(768)).sum().backward()


def step() -> None:
    x, B, A = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(2, 16), torch.zeros(64, 16)
    D = torch.zeros(64)
    selective_state_update.selective_state_update(torch.zeros(2, 64, 16), x, x, A, B, B, D, x, D, True)


if __name__ == "__main__":
    driver.set_active(Hopper())
    JITFunction.__getitem__ = compile_instead
    for op in (selective_scan, causal_conv1d, layer_norm, selective_state_update):
        op.on_device = lambda x: contextlib.nullcontext()
    for compile_all in (scans, convolutions, norms, step):
        compile_all()
