"""``mamba-esi train``: prepare text, and train a language model, ESI for a checkpoint, or both together."""

from __future__ import annotations

import typer

from mamba_ssm.cli.prepare import prepare
from mamba_ssm.cli.recipe import PASSED_ON, follow, needs_extra

app = typer.Typer(help="Train on your own questions, or your own text.", no_args_is_help=True)
app.command()(prepare)


@app.callback()
def train() -> None:
    """Train on your own questions, or your own text."""


@app.command(context_settings=PASSED_ON, add_help_option=False)
def lm(context: typer.Context) -> None:
    """Pretrain a Mamba on a corpus, or continue one: alone, or with `torchrun` and `accelerate launch` on many GPUs."""
    needs_extra()
    from mamba_ssm.training.config import LMConfig
    from mamba_ssm.training.lm import train_lm

    follow(
        context,
        LMConfig,
        lambda config, resume, report, say: train_lm(config, resume, report),
        lambda config: f"{config.out}: the model is written",
    )


@app.command(context_settings=PASSED_ON, add_help_option=False)
def esi(context: typer.Context) -> None:
    """Train search, reader and injection for a checkpoint, which stays as it is; use it with --esi."""
    needs_extra()
    from mamba_ssm.training.answering import train_answering
    from mamba_ssm.training.config import EsiConfig

    follow(
        context,
        EsiConfig,
        train_answering,
        lambda c: f"{c.out}: ask it with `mamba-esi ask BOOK QUESTION --model {c.model} --esi {c.out}`",
    )


@app.command(context_settings=PASSED_ON, add_help_option=False)
def qa(context: typer.Context) -> None:
    """Train a checkpoint end to end to answer from books: its own weights, search, reader and injection."""
    needs_extra()
    from mamba_ssm.training.answering import train_answering
    from mamba_ssm.training.config import QAConfig

    follow(
        context,
        QAConfig,
        train_answering,
        lambda c: f"{c.out}: ask it with `mamba-esi ask BOOK QUESTION --model {c.out}`",
    )
