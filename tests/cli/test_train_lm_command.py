"""``mamba-esi train lm`` before it trains: its help, a wrong command line, and a package that is missing."""

import sys

import pytest
from test_cli import one_line_error, run

NEEDED = ("train", "lm", "--out", "o", "--data", "d", "--steps", 1)


@pytest.mark.parametrize("package", ["accelerate", "jsonargparse"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert f'needs {package}: pip install "mamba-esi[train]"' in one_line_error(run(*NEEDED))


def test_help_says_what_each_setting_means():
    pytest.importorskip("jsonargparse")
    result = run("train", "lm", "--help")
    assert result.exit_code == 0
    assert "--save_every" in result.stdout
    assert "Steps between two checkpoints" in result.stdout


@pytest.mark.parametrize("wrong", [("--lr", "fast"), ("--speed", 1), ("--rows", 0)])
def test_a_wrong_command_line(wrong):
    pytest.importorskip("jsonargparse")
    result = run(*NEEDED, *wrong)
    assert result.exit_code == 2
    assert wrong[0].strip("-") in result.stderr
    assert result.stdout == ""
