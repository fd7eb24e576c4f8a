"""Write the help of every command into docs/cli.md, after its mark. tests/cli/test_help_in_docs.py checks it.

python scripts/write_cli_help.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import docstring_parser
import typer

from mamba_ssm.cli.main import app
from mamba_ssm.training.config import EsiConfig, LMConfig, LoopConfig, NewModel, QAConfig

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
RECIPES: dict[str | None, Sequence[tuple[str, type]]] = {
    "lm": (("", LoopConfig), ("", LMConfig), ("new.", NewModel)),
    "esi": (("", LoopConfig), ("", EsiConfig)),
    "qa": (("", LoopConfig), ("", EsiConfig), ("", QAConfig)),
}
MARK = "<!-- What follows is written by scripts/write_cli_help.py. -->\n"


def commands(
    group: typer.core.TyperGroup, parent: typer.Context
) -> Iterator[tuple[typer.Context, typer.core.TyperCommand]]:
    """Every command below a group, with its context, in the order of --help."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, context)
        else:
            yield context, command


def described(context: typer.Context, command: typer.core.TyperCommand) -> str:
    """A command's usage, what it does, and its arguments and options, as Markdown."""
    lines = [f"### {context.command_path}\n", f"{command.help}\n"]
    lines += ["```", " ".join([context.command_path, *command.collect_usage_pieces(context)]), "```\n"]
    lines += ["| argument or option | meaning |", "|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            name, meaning = (" ".join(part.replace("|", "\\|").split()) for part in record)
            lines.append(f"| `{name}` | {meaning} |")
    if command.name in RECIPES:
        lines += settings(RECIPES[command.name])
    return "\n".join(lines) + "\n"


def settings(kinds: Sequence[tuple[str, type]]) -> Iterator[str]:
    """Rows for the settings of a recipe, whose own parser takes them."""
    yield "| `--config FILE` | A YAML file of these settings. |"
    yield "| `--resume` | Go on from the newest checkpoint of `--out`, or begin where there is none. |"
    rows = {}  # what a kind says of a setting anew stands where the kind before it had it
    for prefix, kind in kinds:
        meanings = {p.arg_name: p.description for p in docstring_parser.parse_from_object(kind).params}
        for setting in fields(kind):
            if setting.name in meanings:
                default = "" if setting.default in (MISSING, None) else f" [default: {setting.default}]"
                needed = " [required]" if setting.default is setting.default_factory is MISSING else ""
                name = f"`--{prefix}{setting.name.replace('_', '-')}`"
                rows[name] = f"| {name} | {meanings[setting.name]}{default}{needed} |"
    yield from rows.values()


def written() -> str:
    """docs/cli.md as it should be."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    root = group.make_context("mamba-esi", [], resilient_parsing=True)
    parts = [described(context, command) for context, command in commands(group, root)]
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8", newline="\n")
