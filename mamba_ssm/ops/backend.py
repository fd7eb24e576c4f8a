"""Which back-end runs an op, and why.

Three back-ends have the same functions with the same signatures: "reference" (plain PyTorch, the specification), "cpu"
(PyTorch too, arranged for speed) and "triton" (kernels for CUDA devices). The fastest that runs on the tensors' device
is taken, unless one is asked for: `backend.use("reference")`, as a call or in a `with`, or MAMBA_BACKEND=reference.
"""

import importlib
import importlib.util
import os
import warnings
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from mamba_ssm.errors import BackendError

NAMES = ("reference", "cpu", "triton")
OPS = ("selective_scan", "causal_conv1d", "layer_norm", "selective_state_update")
# Ops whose reference was measured to be as fast as anything else PyTorch can do on a CPU have no module of their own.
CPU_OPS = frozenset({"selective_scan", "selective_state_update"})

_asked: str | None = None
_warned: set[str] = set()


class Choice(NamedTuple):
    op: str
    device: str
    backend: str
    reason: str
    slow: bool = False


class use:
    """Ask for a back-end by name, or for the best with None; from now on, or inside a `with`.

    Raises BackendError when there is no such back-end or it cannot run on this machine.
    """

    def __init__(self, name: str | None) -> None:
        global _asked
        if name is not None:
            _check(name)
        self._before, _asked = _asked, name

    def __enter__(self) -> "use":
        return self

    def __exit__(self, *_: object) -> None:
        global _asked
        _asked = self._before


def choose(op: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Choice:
    """Say which back-end runs `op` on tensors of `device`; raises BackendError when the one asked for cannot."""
    kind = torch.device(device).type
    name = _asked or os.environ.get("MAMBA_BACKEND")
    if name:
        _check(name)
        if name == "triton" and kind != "cuda" and not _interpreted():
            raise BackendError(f"The triton back-end needs CUDA tensors, not {kind} ones: move them, or ask for cpu.")
        return Choice(op, kind, name, "asked for by name")
    if kind == "cuda" and _has_triton() and dtype != torch.float64:
        return Choice(op, kind, "triton", "the fastest on this device")
    name = "cpu" if op in CPU_OPS else "reference"
    if kind != "cuda":
        fast = "the fastest on a CPU" if op in CPU_OPS else "measured on a CPU: as fast as PyTorch can be"
        return Choice(op, kind, name, fast if kind == "cpu" else f"there are no kernels for {kind}")
    reason = "the kernels compute in fp32, not fp64" if _has_triton() else "there is no Triton: pip install triton"
    return Choice(op, kind, name, reason, slow=True)


def module(op: str, x: torch.Tensor) -> ModuleType:
    """Import the module that runs `op` on x; warn, once, where a faster one could have been."""
    choice = choose(op, x.device, x.dtype)
    if choice.slow and choice.reason not in _warned:
        _warned.add(choice.reason)
        warnings.warn(f"{op} on {choice.device} runs on a slow path: {choice.reason}.", stacklevel=3)
    folder = {"triton": "gpu", "cpu": "cpu" if op in CPU_OPS else "reference"}.get(choice.backend, "reference")
    return importlib.import_module(f"mamba_ssm.ops.{folder}.{op}")


def explain() -> list[Choice]:
    """Return the choice for each op and each device of this machine."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [choose(op, device) for device in devices for op in OPS]


def _check(name: str) -> None:
    if name not in NAMES:
        raise BackendError(f"There is no back-end {name!r}: choose one of {', '.join(NAMES)}.")
    if name == "triton" and not _has_triton():
        raise BackendError("The triton back-end needs Triton: pip install triton, or ask for cpu or reference.")
    if name == "triton" and not torch.cuda.is_available() and not _interpreted():
        raise BackendError("The triton back-end needs a CUDA device, and there is none here: ask for cpu or reference.")


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
