"""``mamba-esi train``: train ESI for a checkpoint, or a language model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mamba_ssm.cli.lm import PASSED_ON, lm
from mamba_ssm.cli.options import Device, DeviceOption
from mamba_ssm.cli.output import training_bar
from mamba_ssm.cli.prepare import prepare
from mamba_ssm.errors import CheckpointError, MambaESIError

if TYPE_CHECKING:
    from torch import Tensor

    from mamba_ssm.text.tokenizer import Tokenizer
    from mamba_ssm.training.examples import Examples

app = typer.Typer(help="Train on your own questions, or your own text.", no_args_is_help=True)
app.command()(prepare)
app.command(context_settings=PASSED_ON, add_help_option=False)(lm)
SHOWN_EVERY = 10  # steps: reading the loss waits for a GPU


@app.callback()
def train() -> None:
    """Train on your own questions, or your own text."""


@app.command()
def esi(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|FOLDER", help="The checkpoint, on the hub or in a folder.")
    ],
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help='JSON lines with "book", "question", "answer", and perhaps "start".',
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="What scripts/prepare_data.py wrote, for checkpoints with the default model's tokenizer.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")] = Path("esi"),
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Tune the checkpoint's own weights too, and write all of it.")
    ] = False,
    steps: Annotated[int, typer.Option(min=3, help="How long to train.")] = 1000,
    lr: Annotated[float, typer.Option(min=1e-6, max=1.0, help="The learning rate at its highest.")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="Questions in a step.")] = 32,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.")] = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Train search, reader and injection for a checkpoint, which stays as it is; use it with --esi."""
    if (questions is None) == (data is None):
        raise typer.BadParameter("give either --questions FILE or --data FOLDER", param_hint="--questions")
    from mamba_ssm.book import Engine
    from mamba_ssm.training.esi_training import Recipe, tune
    from mamba_ssm.training.questions import cut, describe, load_questions

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder: give a new one with --out")
    engine = Engine.load(model, device.value)
    if questions is not None:
        examples, left_out = load_questions(questions, engine.tokenizer)
        if left_out:
            print(f"{questions}: {describe(left_out)}", file=sys.stderr)
        examples = cut(examples, Recipe.crop)
    else:
        assert data is not None
        examples = _prepared(data, engine.tokenizer, model)
    print(f"training on {len(examples.questions):,} questions, {len(examples.ids):,} tokens of books", file=sys.stderr)
    try:
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is better said before the training than after
    except OSError as error:
        raise CheckpointError(f"{out} cannot be made ({error.strerror}): give another folder with --out") from error
    try:
        with _bar(steps) as (log, report):
            tune(engine.model, examples, engine.tokenizer, steps, lr, batch, seed, with_backbone, log, report)
    except FloatingPointError as error:
        raise MambaESIError(f"{error}, with --lr") from error
    if with_backbone:
        engine.model.save_pretrained(out)
        engine.tokenizer.save(out)
    else:
        engine.model.save_esi(out)
    use = f"--model {out}" if with_backbone else f"--model {model} --esi {out}"
    print(f"{out}: ask it with `mamba-esi ask BOOK QUESTION {use}`", file=sys.stderr)


def _prepared(folder: Path, tokenizer: Tokenizer, model: str) -> Examples:
    """The default model's data. Raises MambaESIError where it is none, or means other tokens to this checkpoint."""
    from safetensors import SafetensorError

    from mamba_ssm.book.engine import DEFAULT_MODEL
    from mamba_ssm.text.tokenizer import Tokenizer
    from mamba_ssm.training.examples import Examples

    if not tokenizer.same_vocabulary(Tokenizer.from_folder(DEFAULT_MODEL)):
        raise CheckpointError(
            f"{folder} is in tokens of the default model, and {model} has other ones: give --questions FILE instead"
        )
    path = folder / "train.safetensors"
    try:
        return Examples.load(path)
    except (OSError, SafetensorError, TypeError) as error:
        raise MambaESIError(f"{path} is no prepared data ({error}): run scripts/prepare_data.py") from error


@contextmanager
def _bar(steps: int) -> Iterator[tuple[Callable[[str], None], Callable[[Tensor], None] | None]]:
    """Where to log and to report to: a bar with the loss on a terminal, else a line for each loss that is logged."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield (lambda line: print(line, file=sys.stderr)), None
        return
    with training_bar(console) as progress:
        task = progress.add_task("train", total=steps, said="loss")

        def report(loss: Tensor) -> None:
            progress.advance(task)
            if int(progress.tasks[task].completed) % SHOWN_EVERY == 1:
                progress.update(task, said=f"loss {float(loss):.3f}")

        yield (lambda line: None), report
