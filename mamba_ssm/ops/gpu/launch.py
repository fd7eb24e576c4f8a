"""What every Triton kernel here needs from the host: where it runs, and how large a grid fills the chip."""

import contextlib
from typing import Any

import torch
import triton

from mamba_ssm.errors import BackendError

# Lanes of a warp lie along the channels, so that a channel-last load is one coalesced access.
BLOCK_D = 32


def interpreting() -> bool:
    """Whether Triton runs its kernels in Python (TRITON_INTERPRET=1), which is how they run without a GPU."""
    return bool(triton.knobs.runtime.interpret)


def on_device(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context in which a kernel for x may be launched. Raises BackendError when Triton cannot run on x's device."""
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if interpreting():
        return contextlib.nullcontext()
    raise BackendError(f"The Triton back-end needs CUDA tensors, got {x.device.type}: move them, or take another one.")


def target_programs(x: torch.Tensor, warps_per_program: int) -> int:
    """Programs that keep every multiprocessor of x's device at 16 warps, where latency is hidden well enough."""
    if not x.is_cuda:
        return 8
    return torch.cuda.get_device_properties(x.device).multi_processor_count * 16 // warps_per_program


def _let_interpreter_take_range() -> None:
    """Since NumPy 2.4 an array of one element is no int, and the interpreter of Triton 3.6 takes range() over such."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if interpreting() and triton.__version__.startswith("3.6."):
    _let_interpreter_take_range()
