"""What the scripts that measure a model share: options, intervals, and a record of how a result came about."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mamba_ssm
from mamba_ssm.book import Book, Engine
from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.training.metrics import wilson

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "evals" / "results"
RESAMPLES = 10_000
PACKAGES = ("transformers", "tokenizers", "safetensors", "numpy", "bm25s", "PyStemmer")


def options(description: str, n: int) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint's folder or name; by default the model in the package")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--n", type=int, default=n, help="how many questions or trials (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the result; by default a file in evals/results")
    return parser


@contextmanager
def book_of(engine: Engine, text: str) -> Iterator[Book]:
    """A text as a .txt that was read through the public path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book.txt"
        path.write_text(text, encoding="utf-8", newline="\n")
        with mamba_ssm.read(path, model=engine, progress=False) as book:
            yield book


def figure(value: float | None, interval: Sequence[float] | None, target: float | None = None) -> dict[str, Any]:
    """A number as the results hold it: with its 95% interval, beside its target."""
    result: dict[str, Any] = {"value": value, "interval_95": list(interval) if interval is not None else None}
    if target is not None:
        result |= {"target": target, "reached": value is not None and value >= target}
    return result


def share(hits: Sequence[bool | float], target: float | None = None) -> dict[str, Any]:
    """A proportion, with Wilson's interval."""
    return figure(sum(hits) / len(hits), wilson(sum(hits), len(hits)), target)


def mean(values: Sequence[float], target: float | None = None) -> dict[str, Any]:
    """A mean over questions, with the percentile bootstrap's interval (Efron & Tibshirani 1993, chapter 13)."""
    return figure(float(np.mean(values)), _percentiles(_resampled_means(values)), target)


def ratio(above: Sequence[float], below: Sequence[float], target: float | None = None) -> dict[str, Any]:
    """Ratio of two means over the same questions, which are resampled together; None where it divides by zero."""
    bottoms = _resampled_means(below)
    if not bottoms.all():
        return figure(None, None, target)
    return figure(float(np.mean(above) / np.mean(below)), _percentiles(_resampled_means(above) / bottoms), target)


def _resampled_means(values: Sequence[float]) -> np.ndarray:
    numbers, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(0)
    return np.array([numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(RESAMPLES)])


def _percentiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def provenance(arguments: argparse.Namespace, engine: Engine | None = None) -> dict[str, Any]:
    """When, where and with what a result was measured."""
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted_code": _git("status", "--porcelain", "--", "mamba_ssm", "evals/*.py").splitlines(),
        "arguments": {name: _plain(value) for name, value in vars(arguments).items() if name != "out"},
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "mamba_ssm": mamba_ssm.__version__,
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    }
    if engine is not None:
        record["model"] = {"name": engine.name, "device": str(engine.device), "sha256": _weights(engine.name)}
    return record


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON; an interruption leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def show(name: str, value: dict[str, Any]) -> None:
    """One line for people: the number, its interval, its target."""
    if value["value"] is None:
        print(f"{name}: cannot be computed")
        return
    interval = "" if value["interval_95"] is None else " [{:.3f}, {:.3f}]".format(*value["interval_95"])
    print(f"{name}: {value['value']:.3f}{interval}" + (f", target {value['target']}" if "target" in value else ""))


def _plain(value: Any) -> Any:
    """A path inside the repository without where that lies."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.rstrip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _weights(name: str) -> dict[str, str]:
    """sha256 of each file of weights, where the model is a folder."""
    folder = DEFAULT_MODEL if name == "default" else Path(name)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}
