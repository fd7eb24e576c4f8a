"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


_FORMATS = "A .txt, .md, .rst, .html, .tex, .ipynb, .docx, .epub or .pdf file, or a folder of such files"

BookArgument = Annotated[
    str,
    typer.Argument(metavar="BOOK", help=f"{_FORMATS}; or a file that `read` wrote."),
]


def _is_original(path: str) -> str:
    if path.lower().endswith(".esi"):
        raise typer.BadParameter("this book was read already: give the book itself")
    return path


OriginalArgument = Annotated[str, typer.Argument(metavar="BOOK", help=f"{_FORMATS}.", callback=_is_original)]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME|FOLDER", help="A model on the hub or in a folder. (default: the one shipped)"
    ),
]
EsiOption = Annotated[str | None, typer.Option("--esi", metavar="FOLDER", help="What `train esi` wrote for the model.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=1, max=256, help="Windows the model reads. (default: its own number)")
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, max=4096, help="The longest answer, in tokens.")
]
PassagesOption = Annotated[int, typer.Option("--passages", min=0, max=256, help="Passages of evidence to show.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def _is_a_key(key: str | None) -> str | None:
    if key is not None and not key.strip():
        raise typer.BadParameter("the key is empty", param_hint="--api-key")
    return key


HostOption = Annotated[str, typer.Option(help="The address to listen on.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="MAMBA_ESI_API_KEY",
        help="What clients must send; best in the environment.",
        callback=_is_a_key,
    ),
]
TimeoutOption = Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")]
