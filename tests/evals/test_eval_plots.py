"""The pictures of the documents."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_each_picture_is_drawn_and_shown(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import plots

    monkeypatch.setattr(sys, "argv", ["plots.py", "--out", str(tmp_path)])
    assert plots.main() == 0
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(f"{picture.__name__}.svg" for picture in plots.PICTURES)
    shown = (DOCS / "results.md").read_text(encoding="utf-8")
    for name in drawn:
        assert f"(assets/{name})" in shown
        assert (DOCS / "assets" / name).is_file()
