"""CUDA C++ compiled when it is first needed, by NVRTC: no compiler to install, and only what a model uses.

NVRTC and the driver are reached through NVIDIA's `cuda-bindings`, which PyTorch's CUDA wheels bring along. A compiled
kernel is kept on disk for each source, set of constants, architecture and version of NVRTC, so a machine compiles it
once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mamba_ssm.errors import BackendError
from mamba_ssm.utils.cache import cache_folder

SOURCES = Path(__file__).parent / "kernels"
OLDEST = (8, 0)  # bf16 conversions
TYPES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}

Constants = Mapping[str, "int | str | bool"]


@cache
def headers() -> dict[str, str]:
    """The texts that kernels include, by name."""
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cuh"))}


def compile_cubin(file: str, constants: Constants, architecture: str) -> bytes:
    """Machine code of kernels/`file` for an architecture such as "sm_90", from the cache on disk where it is there.

    `constants` are defined for the preprocessor. Raises BackendError with NVRTC's log when it does not compile.
    """
    nvrtc = _bindings("nvrtc")
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--use_fast_math",
        "--device-as-default-execution-space",
    ]
    options += [f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in constants.items()]
    text = (SOURCES / file).read_text()
    key = hashlib.sha256(repr((text, headers(), options, _call(nvrtc.nvrtcVersion()))).encode()).hexdigest()
    kept = cache_folder() / f"{Path(file).stem}-{key[:32]}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    names, texts = zip(*((name.encode(), header.encode()) for name, header in headers().items()), strict=True)
    program = _call(nvrtc.nvrtcCreateProgram(text.encode(), file.encode(), len(names), list(texts), list(names)))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
    if failed != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytearray(_call(nvrtc.nvrtcGetProgramLogSize(program)))
        _call(nvrtc.nvrtcGetProgramLog(program, log))
        raise BackendError(f"{file} does not compile for {architecture} {dict(constants)}:\n{log.decode()}")
    cubin = bytearray(_call(nvrtc.nvrtcGetCUBINSize(program)))
    _call(nvrtc.nvrtcGetCUBIN(program, cubin))
    _call(nvrtc.nvrtcDestroyProgram(program))
    _write(kept, bytes(cubin))
    return bytes(cubin)


class Kernel:
    """A compiled kernel on one device. Its one parameter is a struct of 64-bit numbers.

    ``early``: in a CUDA graph it may start before the kernels in front of it have ended, and waits for them itself.
    """

    def __init__(self, function: Any, index: int, shared: int, early: bool) -> None:
        driver = _bindings("driver")
        self._index = index
        self._launch, self._function, self._shared = driver.cuLaunchKernel, function, shared
        if shared > 48 * 1024:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _call(driver.cuFuncSetAttribute(function, attribute, shared))
        self._early: Any = None
        if early:
            allowed = driver.CUlaunchAttribute()
            allowed.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            allowed.value.programmaticStreamSerializationAllowed = 1
            self._early = config = driver.CUlaunchConfig()
            config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
            config.sharedMemBytes, config.attrs, config.numAttrs = shared, [allowed], 1
            self._launch_early = driver.cuLaunchKernelEx

    def __call__(self, blocks: int, threads: int, *values: int) -> None:
        """Launch on the current stream of the kernel's device. values: the struct's pointers and integers, in order."""
        if torch.cuda.current_device() != self._index:
            with torch.cuda.device(self._index):
                return self(blocks, threads, *values)
        parameters = struct.pack(f"{len(values)}q", *values)
        pointer = ctypes.c_char_p(parameters)  # cuLaunchKernel takes an array of pointers, here of one
        stream = torch._C._cuda_getCurrentRawStream(self._index)  # the Stream around it would cost as much as all else
        if self._early is not None and torch.cuda.is_current_stream_capturing():
            config = self._early
            config.gridDimX, config.blockDimX, config.hStream = blocks, threads, stream
            _call(self._launch_early(config, self._function, ctypes.addressof(pointer), 0))
            return
        _call(
            self._launch(
                self._function, blocks, 1, 1, threads, 1, 1, self._shared, stream, ctypes.addressof(pointer), 0
            )
        )


def kernel(file: str, name: str, device: torch.device, constants: Constants) -> Kernel:
    """The kernel `name` of kernels/`file` with these constants, for a CUDA device; compiled and loaded once."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return _load(file, name, index, tuple(constants.items()))


@cache
def _load(file: str, name: str, index: int, constants: tuple[tuple[str, Any], ...]) -> Kernel:
    driver = _bindings("driver")
    module = _module(file, index, constants)
    status, address, _ = driver.cuModuleGetGlobal(module, b"SHARED_BYTES")  # a kernel without it needs none
    shared = int.from_bytes(_read(address), sys.byteorder) if status == 0 else 0
    early = driver.cuModuleGetGlobal(module, b"EARLY")[0] == 0
    return Kernel(_call(driver.cuModuleGetFunction(module, name.encode())), index, shared, early)


@cache
def _module(file: str, index: int, constants: tuple[tuple[str, Any], ...]) -> Any:
    major, minor = torch.cuda.get_device_capability(index)
    cubin = compile_cubin(file, dict(constants), f"sm_{major}{minor}")
    with torch.cuda.device(index):
        torch.cuda.current_stream().synchronize()  # PyTorch's context is there from here on
        return _call(_bindings("driver").cuModuleLoadData(cubin))


def _read(address: Any) -> bytes:
    """A 4-byte integer of the device."""
    value = bytearray(4)
    _call(_bindings("driver").cuMemcpyDtoH(value, address, 4))
    return bytes(value)


def why_not(device: torch.device | int = 0) -> str | None:
    """What keeps these kernels from running here, with what to do about it; None where they run."""
    try:
        _bindings("nvrtc")
    except ImportError:
        return "there is no cuda-bindings: pip install cuda-bindings of the CUDA version that PyTorch was built with"
    if torch.version.hip or torch.cuda.get_device_capability(device) < OLDEST:
        return "the CUDA kernels need an NVIDIA GPU of compute capability 8.0 or newer"
    return None


@cache
def _bindings(name: str) -> Any:
    import importlib

    return importlib.import_module(f"cuda.bindings.{name}")


def _call(result: tuple[Any, ...]) -> Any:
    """The value of a call of the bindings; raises BackendError where it failed."""
    status, *values = result
    if status != 0:
        raise BackendError(f"CUDA answered {status.name}: see `mamba-esi doctor`")
    return values[0] if len(values) == 1 else values


def _write(path: Path, data: bytes) -> None:
    """Written aside and renamed, so that no other process ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(name, path)
