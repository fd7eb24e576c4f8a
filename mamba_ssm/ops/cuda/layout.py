"""What a kernel is told of a tensor, and which vectors it may load of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """A compiled kernel and how it is launched: so many blocks, and the parameters that follow the addresses."""

    launch: Callable[..., None]
    blocks: int
    numbers: tuple[int, ...]


class Signature(NamedTuple):
    """All that decides how a kernel for a tensor is compiled and launched, but for where the tensor is."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    misaligned: int  # bytes after a multiple of 16

    def vectors(self, axis: int, count: int) -> bool:
        """Whether `count` neighbours along `axis`, from a multiple of `count` on, can be loaded at once, everywhere."""
        aligned = min(16, count * self.dtype.itemsize)
        others = [s for i, (s, n) in enumerate(zip(self.stride, self.shape, strict=True)) if i != axis and n > 1]
        return (
            (self.stride[axis] == 1 or self.shape[axis] == 1)
            and self.misaligned % aligned == 0
            and all(s * self.dtype.itemsize % aligned == 0 for s in others)
        )


def signature(x: Tensor) -> Signature:
    return Signature(x.dtype, x.shape, x.stride(), x.data_ptr() % 16)


def pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def strides(*tensors: Tensor | None) -> list[int]:
    """Of (B, D, L) tensors, one after the other; zeros where there is none."""
    return [s for x in tensors for s in ((0, 0, 0) if x is None else x.stride())]


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
