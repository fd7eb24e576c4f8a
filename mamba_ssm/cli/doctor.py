"""``mamba-esi doctor``: what is installed, what it runs on, and why."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mamba_ssm import __version__
from mamba_ssm.cli.options import JsonOption
from mamba_ssm.cli.output import write

if TYPE_CHECKING:
    from mamba_ssm.ops.backend import Choice

PACKAGES = ("mamba_ssm", "causal_conv1d")  # the folders that this distribution installs, and the originals do too


def doctor(as_json: JsonOption = False) -> None:
    """Say what each operation runs on, why, and what would make it faster; and which other package is in the way."""
    found = examine()
    write((json.dumps(found) if as_json else "\n".join(_lines(found))) + "\n")


def examine() -> dict[str, Any]:
    """All that `doctor` says, as JSON has it."""
    import torch

    from mamba_ssm.book.engine import DEFAULT_MODEL
    from mamba_ssm.ops import backend

    devices = [f"cpu, {torch.get_num_threads()} threads"]
    devices += [f"cuda:{i}, {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "mamba_esi": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "devices": devices,
        "backends": [choice._asdict() | {"faster": faster(choice)} for choice in backend.explain()],
        "default_model": str(DEFAULT_MODEL) if (DEFAULT_MODEL / "config.json").is_file() else None,
        "conflicts": conflicts(),
    }


def faster(choice: Choice) -> str | None:
    """What would make the op faster on that device; None where nothing would."""
    import torch

    if name := os.environ.get("MAMBA_BACKEND"):
        return f"unset MAMBA_BACKEND, which asks for {name}: the fastest back-end is then taken"
    if choice.slow:
        return choice.reason
    if choice.device != "cpu":
        return None
    if torch.cuda.is_available():
        return "run on the GPU (device cuda)"
    if torch.version.cuda is None and torch.version.hip is None:
        return "a GPU, with a build of PyTorch that has CUDA: this one is for CPUs only"
    return "a GPU: PyTorch has CUDA and finds none (nvidia-smi says whether the driver does)"


def conflicts() -> dict[str, list[str]]:
    """Other distributions with files in the folders of this one, and in which: what is installed last wins, by file."""
    owners = metadata.packages_distributions()
    others: dict[str, list[str]] = {}
    for package in PACKAGES:
        for name in sorted(set(owners.get(package, []))):
            if name.lower().replace("_", "-") != "mamba-esi":
                others.setdefault(name, []).append(package)
    return others


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"mamba-esi {found['mamba_esi']}, Python {found['python']}, PyTorch {found['torch']}, {found['platform']}",
        *(f"device: {device}" for device in found["devices"]),
        *(f"{c['op']} on {c['device']}: {c['backend']}, {c['reason']}" for c in found["backends"]),
    ]
    hints: dict[tuple[str, str], list[str]] = {}
    for c in found["backends"]:
        hints.setdefault((c["device"], c["faster"] or "nothing, this is the fastest there is"), []).append(c["op"])
    every = len({c["op"] for c in found["backends"]})
    for (device, hint), ops in hints.items():
        which = "every op" if len(ops) == every else ", ".join(ops)
        lines.append(f"what would make {which} faster on {device}: {hint}")
    lines.append(f"default model: {found['default_model'] or 'none: install mamba-esi again, or pass --model'}")
    for name, packages in found["conflicts"].items():
        lines.append(
            f"conflict: {name} owns {' and '.join(packages)} too, and the last one installed wins: "
            f"pip uninstall {name}, then install mamba-esi again"
        )
    return lines
