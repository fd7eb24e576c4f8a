"""``mamba-esi doctor``: what is installed, what it runs on, and why."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

from mamba_ssm import __version__
from mamba_ssm.cli.options import JsonOption
from mamba_ssm.cli.output import write


def doctor(as_json: JsonOption = False) -> None:
    """Say which versions and devices are here, and which back-end each operation will use, and why."""
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
        "backends": [choice._asdict() for choice in backend.explain()],
        "default_model": str(DEFAULT_MODEL) if (DEFAULT_MODEL / "config.json").is_file() else None,
        "conflicts": conflicts(),
    }


def conflicts() -> list[str]:
    """Other distributions that have put files into this one's folders: the last one installed wins, file by file."""
    found = metadata.packages_distributions()
    owners = [*found.get("mamba_ssm", []), *found.get("causal_conv1d", [])]
    return sorted({name for name in owners if name.lower().replace("_", "-") != "mamba-esi"})


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"mamba-esi {found['mamba_esi']}, Python {found['python']}, PyTorch {found['torch']}, {found['platform']}",
        *(f"device: {device}" for device in found["devices"]),
        *(f"{c['op']} on {c['device']}: {c['backend']}, {c['reason']}" for c in found["backends"]),
        f"default model: {found['default_model'] or 'none: install mamba-esi again, or pass --model'}",
    ]
    for name in found["conflicts"]:
        lines.append(
            f"conflict: {name} shares folders with mamba-esi: pip uninstall {name}, then install mamba-esi again"
        )
    return lines
