"""Loss and gradient of a chunk of logits on an NVIDIA GPU: kernels/cross_entropy.cu tells how.

Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cuda import compiler

THREADS = 256


def cross_entropy_(logits: Tensor, targets: Tensor, losses: Tensor, ignore_index: int, gradient: bool) -> None:
    """The reference's, for logits (T, V) in fp32, fp16 or bf16 and losses (T,) in fp32.

    Rows must start at multiples of 16 bytes, and what lies between V and the next one is overwritten too. The loss of a
    target out of range is NaN.
    """
    if logits.dtype not in compiler.TYPES:
        raise BackendError(f"The CUDA cross-entropy computes in fp32: use the reference back-end for {logits.dtype}.")
    constants = _constants(compiler.TYPES[logits.dtype], logits.shape[1], gradient)
    launch = compiler.kernel("cross_entropy.cu", "cross_entropy", logits.device, constants)
    pointers = logits.data_ptr(), targets.data_ptr(), losses.data_ptr()
    launch(len(logits), THREADS, *pointers, logits.stride(0), ignore_index)


@cache
def _constants(kind: str, columns: int, gradient: bool) -> dict[str, int | str | bool]:
    return {"TYPE": kind, "COLUMNS": columns, "GRADIENT": gradient}
