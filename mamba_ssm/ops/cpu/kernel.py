"""Kernels in numba: compiled when first used, kept on disk, and run by PyTorch's own threads.

A kernel is a function of one address, of a record that holds all its arguments: addresses and strides of tensors in
bytes, sizes, and kinds of numbers. So PyTorch's OpenMP can call it in each of its threads: a second pool of threads
would fight with PyTorch's, which spin while they wait for work, and Python's lock would cost more than a kernel.
"""

import ctypes
import hashlib
import os
import struct
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.cpu.arithmetic import FAST, KINDS, exact
from mamba_ssm.utils.cache import cache_folder

# Where a thread finds out which one it is, how many there are, and where all wait for each other.
OPENMP = ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")

# glibc gives the memory of large freed tensors back to the system, only to fetch it again a page at a time for the next
# layer, a fifth of a prefill's time; but not blocks smaller than the largest that it has seen freed, up to 32 MiB.
torch.empty(32 * 2**20 - 4096, dtype=torch.uint8)


class Kernel:
    """A function of a record's address, compiled; ``scratch`` bytes of a cache line's alignment go to each thread."""

    def __init__(self, body: Callable[[Any], None], record: np.dtype) -> None:
        self.names = record.names or ()
        self.pack = struct.Struct("".join(record[name].char for name in self.names).replace("l", "q")).pack
        self.body = njit(nogil=True, fastmath=FAST, error_model="numpy")(body)
        self.compiled: Any = None

    def __call__(self, threads: int, scratch: int = 0, **values: int | float) -> None:
        """Run on so many threads, each with ``scratch`` floats of its own."""
        if self.compiled is None:
            self._compile()
        scratch = -(-scratch // 16) * 16
        buffer = torch.empty(max(1, threads * scratch), dtype=torch.float32)
        given = {**_openmp(), "scratch": buffer.data_ptr(), "scratch_bytes": 4 * scratch, **values}
        arguments = self.pack(*[given[name] for name in self.names])
        parallel = _parallel()
        if parallel is None:
            self.compiled(arguments)
        else:
            parallel(self.address, arguments, threads, 0)

    def _compile(self) -> None:
        # numba looks at the file of the kernel alone, so all others that go into it are in the folder's name.
        folder = cache_folder() / f"cpu-{_sources()}"
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            self.body.enable_caching()
        except RuntimeError:
            warnings.warn(
                f"{folder} cannot be written, so kernels are compiled each time: set MAMBA_CACHE", stacklevel=4
            )
        finally:
            config.CACHE_DIR = before
        self.body.compile((types.voidptr,))
        (overload,) = self.body.overloads.values()
        self.address = overload.library.get_pointer_to_function(overload.fndesc.llvm_cfunc_wrapper_name)
        self.compiled = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)


def record(fields: str, floats: str = "") -> np.dtype:
    """The type of a kernel's arguments: integers by name, then floating-point numbers."""
    names = [*OPENMP, "scratch", "scratch_bytes", *fields.split()]
    return np.dtype([(name, np.int64) for name in names] + [(name, np.float64) for name in floats.split()])


def kernel(arguments: np.dtype) -> Callable[[Callable[[Any], None]], Kernel]:
    return lambda body: Kernel(body, arguments)


def kind_of(x: Tensor) -> int:
    """What a kernel is told of x's dtype."""
    if x.dtype not in KINDS:
        raise BackendError(
            f"The CPU's kernels take fp32, fp16 and bf16, not {x.dtype}: convert, or ask for the reference."
        )
    return KINDS[x.dtype]


def rows(name: str, x: Tensor | None) -> dict[str, int]:
    """Fields of x (B, L, D), channels side by side: its address, its kind, and strides in bytes of B and L."""
    if x is None:
        return {name: 0, f"{name}_kind": 0, f"{name}_b": 0, f"{name}_t": 0}
    size = x.element_size()
    fields = {name: x.data_ptr(), f"{name}_kind": kind_of(x)}
    return {**fields, f"{name}_b": x.stride(0) * size, f"{name}_t": x.stride(1) * size}


def row_fields(names: str) -> str:
    """The names of what `rows` gives."""
    return " ".join(f"{n} {n}_kind {n}_b {n}_t" for n in names.split())


def addresses(**tensors: Tensor | None) -> dict[str, int]:
    """Fields of tensors that a kernel finds its way in by itself."""
    return {name: 0 if x is None else x.data_ptr() for name, x in tensors.items()}


def neighbours_last(x: Tensor) -> Tensor:
    """x (..., D), copied only if numbers of its last dimension do not lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def threads_for(items: int, each: int) -> int:
    """How many threads are worth waking for `items` pieces of work of `each` numbers."""
    return max(1, min(torch.get_num_threads(), items, items * each // 8192))


@intrinsic
def _call(context: Any, function: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), [])

    return types.int32(types.int64), generate


@intrinsic
def use_wide_vectors(context: Any) -> Any:
    """Let LLVM use all 512 bits of a vector; it takes 256 if not told, for the sake of clocks that no longer drop."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


@exact
def thread(p: Any) -> Any:
    return np.int64(_call(p.omp_get_thread_num)) if p.omp_get_thread_num != 0 else 0


@exact
def thread_count(p: Any) -> Any:
    return np.int64(_call(p.omp_get_num_threads)) if p.omp_get_num_threads != 0 else 1


@exact
def wait_for_all(p: Any) -> None:
    if p.GOMP_barrier != 0:
        _call(p.GOMP_barrier)


@cache
def _library() -> ctypes.CDLL:
    """PyTorch's CPU library; a symbol of what it is linked with is found through it."""
    name = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    return ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", name))


@cache
def _parallel() -> Any:
    """OpenMP's entry for GCC's code, or None where PyTorch's OpenMP has none: then kernels run in one thread."""
    function = getattr(_library(), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function


@cache
def _openmp() -> dict[str, int]:
    if _parallel() is None:
        return dict.fromkeys(OPENMP, 0)
    return {name: ctypes.cast(getattr(_library(), name), ctypes.c_void_p).value or 0 for name in OPENMP}


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
