"""``mamba-esi library`` where Ray is missing; with it, see tests/cluster."""

import sys

import pytest
from typer.testing import CliRunner

from mamba_ssm.cli.main import app


@pytest.mark.parametrize("command", [["read", __file__, "--out", "library"], ["serve", "library"]])
def test_a_missing_extra_is_one_line(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("mamba_ssm.cluster.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["library", *command])
    assert done.exit_code == 1
    assert done.stderr == 'mamba-esi: a library needs ray: pip install "mamba-esi[ray]"\n'
    assert list(tmp_path.iterdir()) == []
