"""A corpus that was damaged, or never was one."""

import json
import shutil

import numpy as np
import pytest

from mamba_ssm.errors import CorpusError
from mamba_ssm.training.corpus import Corpus, PackedBatches, write_corpus


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("All the world is a stage, and all the men and women merely players. " * 50)
    write_corpus([folder / "a.txt"], tokenizer, folder / "out", shard_tokens=300)
    return folder / "out"


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    assert Corpus.open(tmp_path / "copy").tokens > 600
    return tmp_path / "copy"


FILES = ["tokens-00000.bin", "tokens-00002.bin", "train.bin", "held_out.bin"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, -1, +1])
def test_a_file_that_was_cut_or_grew_does_not_open(folder, name, size):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes((content + b"\0")[: len(content) + size] if size else b"")
    with pytest.raises(CorpusError, match=f"{name} has .* bytes and not"):
        Corpus.open(folder)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CorpusError, match=name):
        Corpus.open(folder)


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_a_flipped_bit_is_found(folder, name):
    corpus = Corpus.open(folder)
    corpus.verify()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CorpusError, match=rf"{name} is damaged \(another checksum\)"):
        corpus.verify()


def test_a_token_outside_the_vocabulary_reaches_no_model(folder):
    name = folder / "tokens-00001.bin"
    content = np.fromfile(name, dtype="<u2")
    content[7] = 40_000
    content.tofile(name)
    batches = PackedBatches(Corpus.open(folder).split("train"), 100, 8, 0)
    with pytest.raises(CorpusError, match="outside its vocabulary"):
        batches.at(0)


@pytest.mark.parametrize("span", [(-1, 5), (5, 5), (6, 5), (0, 1 << 40), (1 << 62, (1 << 62) + 1)])
def test_a_document_outside_the_text_does_not_open(folder, span):
    np.array([span], dtype="<i8").tofile(folder / "train.bin")
    with pytest.raises(CorpusError, match="outside the text"):
        Corpus.open(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b" " * (2 << 20),
        b"9" * 100_000,
    ],
)
def test_a_manifest_of_another_form_is_an_error(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CorpusError, match="damaged") as caught:
        Corpus.open(folder)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": "1" * 9999},
        {"dtype": "object"},
        {"dtype": ["uint16"]},
        {"dtype": "uint32"},
        {"vocab_size": 0},
        {"vocab_size": "many"},
        {"tokens": 1 << 61},
        {"tokens": -5},
        {"tokens": 1e3},
        {"tokens": True},
        {"tokens": 1 << 90},
        {"shard_tokens": 0},
        {"shard_tokens": 1},
        {"documents": {"train": 1}},
        {"documents": {"train": 1 << 50, "held_out": 1}},
        {"documents": [1, 1]},
        {"sha256": {}},
        {"sha256": {"../../etc/passwd": ""}},
        {"sha256": []},
        {"sources": None},
        {"more": 1},
    ],
)
def test_a_hostile_manifest_is_an_error(folder, changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CorpusError) as caught:
        Corpus.open(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
