"""The command ``mamba-esi``. Exit status: 0 done, 1 failed, 2 the command line is wrong, 130 stopped with Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mamba_ssm import __version__
from mamba_ssm.cli.ask import ask
from mamba_ssm.cli.chat import chat
from mamba_ssm.cli.convert import convert
from mamba_ssm.cli.doctor import doctor
from mamba_ssm.cli.library import app as library
from mamba_ssm.cli.read import read
from mamba_ssm.cli.serve import serve
from mamba_ssm.cli.shelf import app as shelf
from mamba_ssm.cli.text import text
from mamba_ssm.cli.train import app as train
from mamba_ssm.errors import MambaESIError


class _Commands(TyperGroup):
    """Ends every command that fails for a reason that the user can mend with one line, and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MambaESIError as error:
            print(f"mamba-esi: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Python flushes standard output once more at exit, which would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


app = typer.Typer(
    name="mamba-esi",
    cls=_Commands,
    help="Read a whole book and answer questions about it, with the passages that the answers come from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mamba-esi {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    # PyTorch's threads otherwise spin while they wait for one another. Where other programs want the same cores, that
    # was measured to slow reading down from 21,000 tokens a second to 9,000, and at worst to 2,000.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A process that is asked to end cleans up as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


for command in (ask, chat, read, text, serve, convert, doctor):
    app.command()(command)
app.add_typer(shelf, name="shelf")
app.add_typer(library, name="library")
app.add_typer(train, name="train")


if __name__ == "__main__":
    app()
