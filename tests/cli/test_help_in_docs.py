"""docs/cli.md says what --help says."""

from pathlib import Path


def test_the_help_in_the_docs_is_that_of_the_command(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    from write_cli_help import PAGE, written

    assert PAGE.read_text(encoding="utf-8") == written(), "run scripts/write_cli_help.py"
