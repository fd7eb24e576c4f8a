"""docs/cli.md says what --help says, and every command has a --help."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mamba_ssm.cli.main import app


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def test_the_help_in_the_docs_is_that_of_the_command(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    from write_cli_help import PAGE, written

    assert PAGE.read_text(encoding="utf-8") == written(), "run scripts/write_cli_help.py"


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.exception
    assert "usage:" in result.output.lower()
