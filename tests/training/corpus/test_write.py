"""Sources to a corpus: what is in it, in which order, and what is refused."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import BookError, CorpusError
from mamba_ssm.training.corpus import Corpus, source, write_corpus
from mamba_ssm.training.corpus.holdout import divide

WORDS = "A café in Zürich sells 🌱 bread. "


def all_documents(corpus):
    """The ids of each document, a divided one whole again, by where it begins."""
    spans = {name: corpus.split(name) for name in ("train", "held_out")}
    starts = {
        int(start): int(end) for split in spans.values() for start, end in zip(split.starts, split.ends, strict=True)
    }
    assert sum(end - start for start, end in starts.items()) == corpus.tokens
    ids = corpus.take(np.arange(corpus.tokens)).tolist()
    end_of_text = corpus.tokenizer().end_of_text
    ends = [i + 1 for i, token in enumerate(ids) if token == end_of_text]
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def expected(tokenizer, texts):
    return [[*tokenizer.encode(text).ids.tolist(), tokenizer.end_of_text] for text in texts]


def test_every_kind_of_file_is_a_document_in_the_order_of_names(tmp_path, tokenizer, lines):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git/x.txt").write_text("hidden")
    (folder / "empty.txt").touch()
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "a.md").write_text("# One\n\ntext", encoding="utf-8")
    (folder / "b/page.html").write_text("<html><body><p>Two</p></body></html>")
    (folder / "c.jsonl").write_text(json.dumps({"text": "three"}) + "\n\n" + json.dumps({"text": "fo\ud800ur"}) + "\n")
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "five", "more": [1]}\n{"text": ""}\n{"text": "six"}'))
    (folder / "e.txt.gz").write_bytes(gzip.compress((WORDS * 4000).encode()))
    corpus = write_corpus(
        [folder, lines(["eight <|endoftext|>", "nine"])], tokenizer, tmp_path / "out", shard_tokens=999
    )
    texts = [
        "# One\n\ntext",
        "Two\n",
        "three",
        "fo\ufffdur",
        "five",
        "six",
        WORDS * 4000,
        "eight <|endoftext|>",
        "nine",
    ]
    assert all_documents(corpus) == expected(tokenizer, texts)
    assert corpus.tokens > 999 * 5
    assert corpus.vocab_size == tokenizer.vocab_size
    assert corpus.tokenizer().same_vocabulary(tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts", "texts.jsonl"]
    corpus.verify()


@settings(max_examples=30)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=30))
def test_any_texts_come_back(texts, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    if not any(texts):
        with pytest.raises(CorpusError, match="no text in them"):
            write_corpus([path], tokenizer, folder / "out")
        assert not (folder / "out").exists()
        return
    corpus = write_corpus([path], tokenizer, folder / "out", shard_tokens=7)
    assert all_documents(corpus) == expected(tokenizer, filter(None, texts))


def test_the_same_again_does_nothing_and_others_are_refused(tmp_path, tokenizer, lines):
    path = lines([WORDS] * 3)
    corpus = write_corpus([path], tokenizer, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(path.read_bytes())
    again = write_corpus([moved], tokenizer, tmp_path / "out", shard_tokens=5)
    assert again.fingerprint == corpus.fingerprint
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before
    moved.write_bytes(path.read_bytes() + b'{"text": "x"}')
    for sources in ([moved], [path, path]):
        with pytest.raises(CorpusError, match="other sources or of another tokenizer"):
            write_corpus(sources, tokenizer, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").touch()
    with pytest.raises(CorpusError, match="not an empty folder"):
        write_corpus([path], tokenizer, tmp_path / "mine")
    (tmp_path / "new").mkdir()
    assert write_corpus([path], tokenizer, tmp_path / "new").fingerprint == corpus.fingerprint


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"3", b"null", b'{"other": "x"}', b'{"text": 3}', b"\xff", b"[" * 200_000, b"x" * 5000]
)
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_a_bad_line_is_named(tmp_path, tokenizer, line, name, monkeypatch):
    monkeypatch.setattr(source, "LINE_BYTES", 4000)
    content = b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(CorpusError, match=rf"{name}, line 3: "):
        write_corpus([tmp_path / name], tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_field(tmp_path, tokenizer, lines):
    corpus = write_corpus([lines(["body"], field="content")], tokenizer, tmp_path / "out", field="content")
    assert all_documents(corpus) == expected(tokenizer, ["body"])


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-20], "cannot be read"),
        ("none.jsonl.gz", b"not packed", "cannot be read"),
        ("cut.txt.gz", gzip.compress(os.urandom(99).hex().encode() * 999)[:-20], "cannot be read"),
        ("latin.txt.gz", gzip.compress("Zürich".encode("latin-1"), mtime=0), "not UTF-8"),
        ("binary.txt", b"\0\1\2" * 99, "not text"),
        ("empty.txt", b"", "empty"),
        ("empty.jsonl", b"", "no text in them"),
        ("missing.txt", None, "no such file"),
        ("/dev/zero", None, "neither a file nor a folder"),
    ],
)
def test_unreadable_sources_leave_nothing(tmp_path, tokenizer, name, content, error):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((CorpusError, BookError), match=error):
        write_corpus([tmp_path / name], tokenizer, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name != name]


def test_a_folder_without_text_is_an_error(tmp_path, tokenizer):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(CorpusError, match="no text in this folder"):
        write_corpus([tmp_path / "texts"], tokenizer, tmp_path / "out")


def test_of_many_documents_whole_ones_are_held_out_and_copies_with_them(tmp_path, tokenizer, lines):
    texts = [f"{WORDS} number {i}" for i in range(200)]
    corpus = write_corpus([lines(texts + texts[::-1])], tokenizer, tmp_path / "out")
    documents = {
        name: {tuple(corpus.take(np.arange(*span))) for span in zip(s.starts, s.ends, strict=True)}
        for name in ("train", "held_out")
        for s in [corpus.split(name)]
    }
    assert len(documents["held_out"]) == 200 // 50
    assert len(corpus.split("held_out").starts) == 2 * 4
    assert not documents["held_out"] & documents["train"]
    assert len(documents["train"]) == 196
    # Another order changes nothing.
    other = write_corpus([lines(texts[::-1], "other.jsonl")], tokenizer, tmp_path / "other").split("held_out")
    assert {tuple(other.take(np.arange(*span))) for span in zip(other.starts, other.ends, strict=True)} == documents[
        "held_out"
    ]


def test_of_few_documents_the_end_of_each_is_held_out():
    spans = divide(np.array([100, 149, 1149]), np.array([5, 6, 7], dtype=np.uint64), [2, 1])
    assert spans["train"].tolist() == [[0, 98], [100, 149], [149, 1129]]
    assert spans["held_out"].tolist() == [[98, 100], [1129, 1149]]


def test_documents_that_are_all_alike_are_learnt_from():
    ends = np.arange(1, 1001) * 100
    spans = divide(ends, np.full(1000, 9, dtype=np.uint64), [1000])
    assert len(spans["train"]) == 1000


def test_a_run_that_is_killed_leaves_nothing_that_opens(tmp_path, tokenizer):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(f"{i} {WORDS * 20_000}", encoding="utf-8")
    code = (
        "import sys; from mamba_ssm.book.engine import DEFAULT_MODEL; from mamba_ssm.text.tokenizer import Tokenizer;"
        "from mamba_ssm.training.corpus import write_corpus;"
        "write_corpus(sys.argv[1:2], Tokenizer.from_folder(DEFAULT_MODEL), sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(tmp_path / "out")])
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".out.*/tokens-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    (left,) = tmp_path.glob(".out.*")
    for path in (tmp_path / "out", left):
        with pytest.raises(CorpusError, match="is no corpus"):
            Corpus.open(path)
    assert len(write_corpus([folder / "00.txt"], tokenizer, tmp_path / "out").split("train").starts) == 1
