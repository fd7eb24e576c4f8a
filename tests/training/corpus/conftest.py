"""Corpora in which every token tells where it comes from."""

import json

import pytest

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.from_folder(DEFAULT_MODEL)


@pytest.fixture
def lines(tmp_path):
    """Writes texts as JSON lines."""

    def write(texts, name="texts.jsonl", field="text"):
        path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
