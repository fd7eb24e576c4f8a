"""Which back-end runs an op, and why.

Four back-ends have the same functions with the same signatures: "reference" (plain PyTorch, the specification), "cpu"
(numba, compiled when first used), "cuda" (CUDA C++ for NVIDIA GPUs, compiled when first used) and "triton" (for all
GPUs that Triton knows). The fastest that runs on the tensors' device is taken, unless one is asked for, with
`backend.use("reference")`, as a call or in a `with`, or with MAMBA_BACKEND=reference. Where the one taken lacks an op,
the next one in the device's order runs it.
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

NAMES = ("reference", "cpu", "cuda", "triton")
OPS = (
    "selective_scan",
    "causal_conv1d",
    "layer_norm",
    "selective_state_update",
    "block_step",
    "linear",
    "linear_cross_entropy",
    "topk_search",
    "table_scores",
)
# The reference has all. On a CPU PyTorch's own products are what it makes of the two that "cpu" does not name.
HAVE = {
    "cpu": frozenset(OPS) - {"linear_cross_entropy", "topk_search"},
    "cuda": frozenset(OPS) - {"linear", "table_scores"},
    "triton": frozenset({"selective_scan", "causal_conv1d", "layer_norm", "selective_state_update"}),
}
FOLDERS = {"triton": "gpu"}

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


def choose(
    op: str, device: torch.device | str, dtype: torch.dtype = torch.float32, without: frozenset[str] = frozenset()
) -> Choice:
    """Say which back-end runs `op` on tensors of `device`; raises BackendError when the one asked for cannot.

    without: back-ends that do not take this very call; one that is asked for by name says so itself.
    """
    kind = torch.device(device).type
    name = _asked or os.environ.get("MAMBA_BACKEND")
    if name:
        _check(name)
        if name in ("cuda", "triton") and kind != "cuda" and not (name == "triton" and _interpreted()):
            raise BackendError(f"The {name} back-end needs CUDA tensors, not {kind} ones: move them, or ask for cpu.")
        if name == "cpu" and kind != "cpu":
            raise BackendError(f"The cpu back-end needs CPU tensors, not {kind} ones: move them.")
        return Choice(op, kind, _first(op, _from(name, kind)), "asked for by name")
    if kind not in ("cpu", "cuda"):
        return Choice(op, kind, "reference", f"there are no kernels for {kind}", slow=True)
    if dtype == torch.float64:
        return Choice(op, kind, "reference", "the kernels compute in fp32, not fp64", slow=True)
    if kind == "cpu":
        if op not in HAVE["cpu"]:
            return Choice(op, kind, "reference", "PyTorch's matrix products are the fastest on a CPU")
        if not _has_numba():
            return Choice(op, kind, "reference", "there is no numba: pip install numba", slow=True)
        return Choice(op, kind, "cpu", "the fastest on a CPU")
    missing = _why_not_cuda()
    if missing is None:
        able = tuple(
            n for n in ("cuda", "triton", "reference") if n not in without and (n != "triton" or _has_triton())
        )
        taken = _first(op, able)
        return Choice(op, kind, taken, "the fastest on this device" if taken == "cuda" else "the fastest for this call")
    if _has_triton():
        taken = _first(op, tuple(n for n in ("triton", "reference") if n not in without))
        return Choice(op, kind, taken, missing, slow=torch.version.hip is None)
    reason = f"{missing}; and there is no Triton: pip install triton"
    return Choice(op, kind, "reference", reason, slow=True)


def module(op: str, x: torch.Tensor, without: frozenset[str] = frozenset()) -> ModuleType:
    """Import the module that runs `op` on x; warn, once, where a faster one could have been."""
    choice = choose(op, x.device, x.dtype, without)
    if choice.slow and choice.reason not in _warned:
        _warned.add(choice.reason)
        warnings.warn(f"{op} on {choice.device} runs on a slow path: {choice.reason}.", stacklevel=3)
    return importlib.import_module(f"mamba_ssm.ops.{FOLDERS.get(choice.backend, choice.backend)}.{op}")


def _from(name: str, kind: str) -> tuple[str, ...]:
    """The order of a device's back-ends from `name` on."""
    order = ("cuda", "triton", "reference") if kind == "cuda" else ("triton", "cpu", "reference")
    missing = {"triton": not _has_triton(), "cpu": not _has_numba()}
    usable = tuple(n for n in order if n == name or not missing.get(n, False))
    return (name, *usable[usable.index(name) + 1 :]) if name in usable else (name, "reference")


def _first(op: str, names: tuple[str, ...]) -> str:
    return next(n for n in names if n == "reference" or op in HAVE[n])


def explain() -> list[Choice]:
    """Return the choice for each op and each device of this machine."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [choose(op, device) for device in devices for op in OPS]


def _check(name: str) -> None:
    if name not in NAMES:
        raise BackendError(f"There is no back-end {name!r}: choose one of {', '.join(NAMES)}.")
    if name == "cpu" and not _has_numba():
        raise BackendError("The cpu back-end needs numba: pip install numba, or ask for reference.")
    if name == "triton" and not _has_triton():
        raise BackendError("The triton back-end needs Triton: pip install triton, or ask for cpu or reference.")
    if name in ("cuda", "triton") and not torch.cuda.is_available() and not (name == "triton" and _interpreted()):
        raise BackendError(
            f"The {name} back-end needs a CUDA device, and there is none here: ask for cpu or reference."
        )
    if name == "cuda" and (missing := _why_not_cuda()):
        raise BackendError(f"The cuda back-end cannot run here: {missing}.")


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _why_not_cuda() -> str | None:
    from mamba_ssm.ops.cuda import compiler

    return compiler.why_not()


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
