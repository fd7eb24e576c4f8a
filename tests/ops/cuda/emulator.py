"""Run the CUDA kernels on a CPU: compiled by g++ against emulator.h, called in the place of `compiler.kernel`."""

import ctypes
import hashlib
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from mamba_ssm.ops.cuda.compiler import SOURCES, Constants

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")


def kernel(file: str, name: str, device: torch.device, constants: Constants) -> Callable[..., None]:
    """As `mamba_ssm.ops.cuda.compiler.kernel`, for tensors on a CPU."""
    assert device.type == "cpu"
    run = getattr(_library(file, tuple(constants.items())), f"run_{name}")

    def launch(blocks: int, threads: int, *values: int) -> None:
        run(struct.pack(f"{len(values)}q", *values), (ctypes.c_int * 3)(blocks, 1, 1), threads, 1)

    return launch


@cache
def _library(file: str, constants: tuple[tuple[str, int | str | bool], ...]) -> ctypes.CDLL:
    text = (SOURCES / file).read_text()
    kernels = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(', text)
    runs = "\n".join(f"EMULATE({name})" for name in kernels)
    whole = f'#include "emulator.h"\n#include "{SOURCES / file}"\n{runs}\n'
    defines = [f"-D{k}={int(v) if isinstance(v, bool) else v}" for k, v in constants]
    # -fno-gnu-unique: else all libraries would have one and the same shared memory of an inline function.
    flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-fno-gnu-unique", "-shared", f"-I{HERE}", f"-I{SOURCES}"]
    # A GPU faults where a vector is misaligned, a CPU does not.
    flags += ["-fsanitize=alignment", "-fno-sanitize-recover"]
    texts = [path.read_text() for path in (HERE / "emulator.h", *sorted(SOURCES.glob("*.cuh")))]
    key = hashlib.sha256(repr((whole, text, texts, flags, defines)).encode()).hexdigest()
    built = Path(tempfile.gettempdir()) / f"emulated-{key[:24]}.so"
    if not built.exists():
        assert COMPILER is not None
        # Built aside and renamed: tests run in several processes at once.
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            source, library = Path(folder) / "kernel.cc", Path(folder) / "kernel.so"
            source.write_text(whole)
            subprocess.run([COMPILER, *flags, *defines, str(source), "-o", str(library)], check=True)
            library.replace(built)
    return ctypes.CDLL(str(built))
