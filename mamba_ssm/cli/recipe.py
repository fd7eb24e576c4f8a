"""What the commands that train have in common: their settings, where a run is shown, how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import typer

from mamba_ssm.cli.output import training_bar
from mamba_ssm.errors import TrainingError

if TYPE_CHECKING:
    from signal import Signals

    from mamba_ssm.training.config import LoopConfig
    from mamba_ssm.training.engine import Metrics

# Options are the settings of training/config.py: their parser reads a YAML file, too, and has the --help.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = TypeVar("Config", bound="LoopConfig")


def needs_extra() -> None:
    """Raises TrainingError where a package of the extra `train` is missing."""
    try:
        import accelerate  # noqa: F401
        import docstring_parser  # noqa: F401
        import jsonargparse  # noqa: F401
    except ModuleNotFoundError as error:
        raise TrainingError(f'training needs {error.name}: pip install "mamba-esi[train]"') from error


def follow(
    context: typer.Context,
    kind: type[Config],
    train: Callable[[Config, bool, Callable[[Metrics], None], Callable[[str], None]], Signals | None],
    written: Callable[[Config], str],
) -> None:
    """Train by a recipe with the settings that were given. ``written`` says what there is at the end."""
    from mamba_ssm.training.config import SettingError, as_yaml, parse

    try:
        config, resume = parse(kind, context.command_path, context.args)
    except SettingError as error:
        raise typer.BadParameter(str(error)) from error
    if os.environ.get("RANK", "0") != "0":  # of the processes of a run, one speaks
        stopped = train(config, resume, lambda metrics: None, lambda line: None)
    else:
        _say(as_yaml(config))
        with _shown(config.steps) as report:
            stopped = train(config, resume, report, _say)
        _say(
            written(config)
            if stopped is None
            else f"stopped by {stopped.name}: a checkpoint is written, go on with --resume"
        )
    if stopped is not None:
        raise typer.Exit(128 + stopped)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _shown(steps: int) -> Iterator[Callable[[Metrics], None]]:
    """Where to report to: a bar on a terminal, else a line each time."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda metrics: _say(f"step {metrics['step']}/{steps} {_said(metrics)}")
        return
    with training_bar(console) as progress:
        task = progress.add_task("train", total=steps, said="")

        def report(metrics: Metrics) -> None:
            progress.update(task, completed=metrics["step"], said=_said(metrics))
            if "held_out_loss" in metrics:
                progress.console.print(f"step {metrics['step']:.0f} {_said(metrics)}")

        yield report


def _said(metrics: Metrics) -> str:
    said = f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second']:,.0f} tokens/s"
    if "share_of_peak" in metrics:
        said += f", {metrics['share_of_peak']:.1%} of peak"
    if "held_out_perplexity" in metrics:
        said += f", held-out perplexity {metrics['held_out_perplexity']:.2f}"
    elif "held_out_loss" in metrics:
        said += f", held-out loss {metrics['held_out_loss']:.3f}"
    return said
