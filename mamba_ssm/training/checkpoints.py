"""Checkpoints of a run: what it trains and the optimiser's moments, in shards that any number of processes can read.

``checkpoints/step-000120/`` holds a safetensors file per process, with the parts of each tensor that this process had
(torch.distributed.checkpoint puts them together again), and state.json, with the step and what the run was told. It is
written under another name and renamed, so a folder of that name is complete. All that is random in a run is a function
of seed, step and rank, and so is not in there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mamba_ssm.errors import TrainingError

FOLDER, STATE = "checkpoints", "state.json"
_NAME = re.compile(r"step-(\d{6,})")
_STATE = {"step": int, "config": dict, "data": str}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's: a parameter may not take every step


def newest(out: Path) -> Path | None:
    """The last complete checkpoint of a run."""
    found = _complete(out)
    return found[-1] if found else None


def save(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> None:
    """Write a checkpoint after ``step`` steps, and remove all but the newest ``keep``. Every process calls this.

    Raises TrainingError where it cannot be written; the checkpoints before it are still there.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_shards
    from torch.distributed.checkpoint.api import CheckpointException

    folder = out / FOLDER / f"step-{step:06d}"
    part = folder.with_name(f".{folder.name}.part")
    try:
        if _is_first():
            for left in part.parent.glob(".step-*.part"):  # of a run that was killed
                shutil.rmtree(left)
            part.mkdir(parents=True)
        _wait()
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        with _quiet():
            save_shards(_tensors(model, optimizer), storage_writer=writer, no_dist=not dist.is_initialized())
        if _is_first():
            with (part / STATE).open("w", encoding="utf-8") as file:
                json.dump({"step": step, **state}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            part.rename(folder)
            for old in _complete(out)[:-keep]:
                # First another name: half a checkpoint must not have one.
                shutil.rmtree(old.rename(old.with_name(f".{old.name}.part")))
        _wait()
    except (OSError, CheckpointException) as error:
        if _is_first():
            shutil.rmtree(part, ignore_errors=True)
        before = newest(out)
        kept = f"{before} is the last good checkpoint" if before else "there is no checkpoint before it"
        raise TrainingError(
            f"{folder} cannot be written ({_reason(error)}): make room, then --resume; {kept}"
        ) from error


def read_state(folder: Path) -> dict[str, Any]:
    """What state.json says. Raises TrainingError where it is damaged."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(state, dict) or {name: type(state.get(name)) for name in _STATE} != _STATE:
        raise _damaged(folder, ValueError(f"{STATE} is not what a run writes"))
    return state


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint into model and optimizer, in place, whatever the number of processes.

    Raises TrainingError where it is damaged.
    """
    from safetensors import SafetensorError
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_shards
    from torch.distributed.checkpoint.api import CheckpointException

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter) for name in MOMENTS[1:]}
            where = parameter.device if group["fused"] else "cpu"
            optimizer.state[parameter] = {"step": torch.zeros((), device=where), **moments}
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with _quiet():
            load_shards(_tensors(model, optimizer), storage_reader=reader, no_dist=not dist.is_initialized())
    except (OSError, SafetensorError, CheckpointException, RuntimeError) as error:
        raise _damaged(folder, error) from error


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, put together where processes have parts of them. Every process calls this."""
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).cpu() for name, t in tensors.items()}


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint holds, by names that do not depend on what the model is wrapped in."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("module.")
        tensors[name] = parameter.detach()
        for moment in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"optimizer.{name}.{moment}"] = optimizer.state[parameter][moment]
    return tensors


def _complete(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = out / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that there is one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _damaged(folder: Path, error: BaseException) -> TrainingError:
    return TrainingError(f"{folder} is damaged ({_reason(error)}): remove it, to resume from the one before")


def _reason(error: BaseException) -> str:
    """One line; of several processes' failures, the first's."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
