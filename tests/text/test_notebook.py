"""Notebooks: Markdown names sections, code and what it printed keep their lines, and nothing is run."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import BookError
from mamba_ssm.text import read_pieces


def markdown(source: str | list[str]) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str | list[str], *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "execution_count": 1, "source": source, "outputs": list(outputs)}


def write(path: Path, *cells: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def test_cells_and_sections(tmp_path: Path) -> None:
    path = write(
        tmp_path / "book.ipynb",
        markdown(["# Light\n", "Leaves."]),
        code(
            "# no heading\nfor x in y:\n    print(x)",
            {"output_type": "stream", "name": "stdout", "text": ["\x1b[31m1\x1b[0m\n", "2\n"]},
            {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}},
            {"output_type": "error", "ename": "E", "evalue": "e", "traceback": ["long"]},
        ),
        markdown("Water\n====="),
    )
    assert [(piece.section, piece.text) for piece in read_pieces(path)] == [
        ("Light", "# Light\nLeaves.\n\n# no heading\nfor x in y:\n    print(x)\n\n1\n2\n\n<Figure>\n\n"),
        ("Water", "Water\n=====\n\n"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[" * 100_000,
        "[]",
        "{}",
        '{"cells": 1}',
        '{"cells": [1]}',
        '{"cells": [{}]}',
        '{"cells": [{"cell_type": "code", "source": 1}]}',
        '{"cells": [{"cell_type": "code", "source": [1]}]}',
        '{"cells": [{"cell_type": "code", "source": "x", "outputs": [{"data": []}]}]}',
        '{"worksheets": [{"cells": []}], "nbformat": 3}',
    ],
)
def test_what_is_no_notebook(tmp_path: Path, content: str) -> None:
    path = tmp_path / "book.ipynb"
    path.write_text(content)
    with pytest.raises(BookError, match="no notebook of format 4; open it in Jupyter"):
        list(read_pieces(path))


def test_halves_of_characters_become_the_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "book.ipynb"
    path.write_text(r'{"cells": [{"cell_type": "markdown", "source": "a\ud800b \ud83c\udf31"}]}')
    assert "".join(piece.text for piece in read_pieces(path)) == "a\ufffdb 🌱\n\n"


@given(at=st.integers(0, 400), junk=st.binary(max_size=10))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_notebook_fails_in_no_other_way(tmp_path: Path, at: int, junk: bytes) -> None:
    path = write(tmp_path / "book.ipynb", markdown("# One\ntwo"), code("x = 1", {"text": ["1\n"]}))
    data = path.read_bytes()
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    with contextlib.suppress(BookError):  # and nothing else
        list(read_pieces(path))
