"""Data sets in folders: as parquet, and as `save_to_disk` writes them."""

import numpy as np
import pytest

from mamba_ssm.errors import CorpusError
from mamba_ssm.training.corpus import write_corpus

datasets = pytest.importorskip("datasets")
TEXTS = ["One row.", "", "Another row, with an é."]


@pytest.fixture(params=["parquet", "saved", "saved with splits"])
def folder(request, tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS, "number": [1, 2, 3]})
    path = tmp_path / "rows"
    if request.param == "parquet":
        path.mkdir()
        rows.to_parquet(path / "train-00000-of-00001.parquet")
    elif request.param == "saved":
        rows.save_to_disk(path)
    else:
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(path)
    return path


def test_a_row_is_a_document(folder, tmp_path, tokenizer):
    corpus = write_corpus([f"hf:{folder}"], tokenizer, tmp_path / "out")
    wanted = [i for text in TEXTS if text for i in (*tokenizer.encode(text).ids.tolist(), tokenizer.end_of_text)]
    assert corpus.take(np.arange(corpus.tokens)).tolist() == wanted
    again = write_corpus([f"hf:{folder}"], tokenizer, tmp_path / "out")
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(CorpusError, match="other sources"):
        write_corpus([f"hf:{folder}"], tokenizer, tmp_path / "out", field="number")


def test_a_column_that_is_missing_or_no_text_is_an_error(folder, tmp_path, tokenizer):
    with pytest.raises(CorpusError, match="has no 'body' but text, number"):
        write_corpus([f"hf:{folder}"], tokenizer, tmp_path / "out", field="body")
    with pytest.raises(CorpusError, match="row 0: no text in 'number'"):
        write_corpus([f"hf:{folder}"], tokenizer, tmp_path / "out", field="number")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_folders_that_are_no_data_set_are_errors(tmp_path, tokenizer):
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match="cannot be read"):
        write_corpus([f"hf:{tmp_path / 'none'}"], tokenizer, tmp_path / "out")
    (tmp_path / "none/train.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(CorpusError, match="cannot be read"):
        write_corpus([f"hf:{tmp_path / 'none'}"], tokenizer, tmp_path / "out")
    (tmp_path / "none/dataset_dict.json").write_bytes(b"[" * 9999)
    with pytest.raises(CorpusError, match="cannot be read"):
        write_corpus([f"hf:{tmp_path / 'none'}"], tokenizer, tmp_path / "out")


def test_a_split_that_is_missing_is_an_error(folder, tmp_path, tokenizer):
    with pytest.raises(CorpusError, match="cannot be read"):
        write_corpus([f"hf:{folder}"], tokenizer, tmp_path / "out", split="validation")


def test_without_the_package_one_line_says_what_to_install(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets.exceptions", None)
    with pytest.raises(CorpusError, match=r"pip install 'mamba-esi\[train\]'"):
        write_corpus(["hf:owner/name"], tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())
