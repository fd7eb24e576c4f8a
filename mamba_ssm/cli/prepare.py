"""``mamba-esi train prepare``: text to a corpus that can be trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mamba_ssm.cli.options import ModelOption

if TYPE_CHECKING:
    from mamba_ssm.text.tokenizer import Tokenizer


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files and folders of books, text (.txt.gz too) and JSON lines (.jsonl, .jsonl.gz); "
            "hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:FOLDER for data sets.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
    model: ModelOption = None,
    field: Annotated[
        str, typer.Option("--field", metavar="NAME", help="Where the text is in JSON lines and in data sets.")
    ] = "text",
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="The part of data sets to take.")] = "train",
) -> None:
    """Tokenise text once, for the model that is to learn it. What is there already is not written again."""
    from mamba_ssm.book import bar
    from mamba_ssm.book.source import Progress
    from mamba_ssm.training.corpus import write_corpus

    tokenizer = _tokenizer(model)
    with bar() as report:
        shown = None if report is None else lambda done: report(Progress(*done))
        corpus = write_corpus(sources, tokenizer, out, field, split, shown)
    train, held_out = corpus.split("train"), corpus.split("held_out")
    print(
        f"{out}: {train.tokens:,} tokens of {len(train.starts):,} documents to train on, {held_out.tokens:,} held out",
        file=sys.stderr,
    )


def _tokenizer(model: str | None) -> Tokenizer:
    """The tokenizer of a checkpoint, or of a folder that has nothing else. Raises CheckpointError."""
    from mamba_ssm.book.engine import DEFAULT_MODEL, load_tokenizer
    from mamba_ssm.text.tokenizer import FILE, Tokenizer
    from mamba_ssm.utils.hf import load_raw_config

    folder = DEFAULT_MODEL if model is None else Path(model).expanduser()
    if (folder / FILE).is_file():
        return Tokenizer.from_folder(folder)
    assert model is not None
    return load_tokenizer(model, load_raw_config(model).get("vocab_size", 0))
