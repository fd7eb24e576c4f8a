"""``mamba-esi train lm``: pretrain a Mamba on text, or continue one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from mamba_ssm.cli.output import training_bar
from mamba_ssm.errors import TrainingError

if TYPE_CHECKING:
    from mamba_ssm.training.engine import Metrics

# Its options are the settings of training/config.py: their parser reads a YAML file, too, and has the --help.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def lm(context: typer.Context) -> None:
    """Pretrain a Mamba on a corpus, or continue one: alone, or with `torchrun` and `accelerate launch` on many GPUs."""
    try:
        import accelerate  # noqa: F401
        import docstring_parser  # noqa: F401
        import jsonargparse  # noqa: F401
    except ModuleNotFoundError as error:
        raise TrainingError(f'training a language model needs {error.name}: pip install "mamba-esi[train]"') from error
    from mamba_ssm.training.config import SettingError, as_yaml, parse
    from mamba_ssm.training.lm import train_lm

    try:
        config, resume = parse(context.args)
    except SettingError as error:
        raise typer.BadParameter(str(error)) from error
    if os.environ.get("RANK", "0") != "0":  # of the processes of a run, one speaks
        stopped = train_lm(config, resume)
    else:
        print(as_yaml(config), file=sys.stderr)
        with _shown(config.steps) as report:
            stopped = train_lm(config, resume, report)
        if stopped is None:
            print(f"{config.out}: the model is written", file=sys.stderr)
        else:
            print(f"stopped by {stopped.name}: a checkpoint is written, go on with --resume", file=sys.stderr)
    if stopped is not None:
        raise typer.Exit(128 + stopped)


@contextmanager
def _shown(steps: int) -> Iterator[Callable[[Metrics], None]]:
    """Where to report to: a bar on a terminal, else a line each time."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda metrics: print(f"step {metrics['step']}/{steps} {_said(metrics)}", file=sys.stderr, flush=True)
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
    return said
