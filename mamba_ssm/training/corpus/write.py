"""Sources to a corpus: tokenised once, in bounded memory, on all cores, in the order of the sources.

In memory are 16 bytes a document, some times that when they are divided, and a batch of text with its tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.errors import CorpusError
from mamba_ssm.text.tokenizer import Tokenizer, cut_blocks
from mamba_ssm.training.corpus import manifest
from mamba_ssm.training.corpus.corpus import Corpus, sha256_of
from mamba_ssm.training.corpus.dataset import PREFIX, Dataset
from mamba_ssm.training.corpus.holdout import divide
from mamba_ssm.training.corpus.manifest import Manifest
from mamba_ssm.training.corpus.source import Files, Source

SHARD_TOKENS = 1 << 28  # half a gigabyte, or one
BLOCK_CHARS = 8192  # what a core tokenises at a time: small, so that none waits long for another
BATCH_CHARS = 1 << 21  # some hundred blocks, so that many cores have work


class Progress(NamedTuple):
    """``bytes`` of the ``total`` of all sources were read, which is None where a source does not tell its size."""

    tokens: int
    bytes: int
    total: int | None


Report = Callable[[Progress], None]


def write_corpus(
    sources: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    field: str = "text",
    split: str = "train",
    report: Report | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Corpus:
    """Tokenise sources into a new folder, or open the one that holds just them already.

    Args:
        sources: Files of text and books in all formats that `mamba_ssm.text.read_pieces` knows; .jsonl, .jsonl.gz and
            .txt.gz; folders with such files; "hf:OWNER/NAME", "hf:OWNER/NAME/CONFIG" or "hf:FOLDER". A document is a
            file, a line, or a row. After each comes the tokenizer's end-of-text token, where it has one.
        field: Where the text is in JSON lines and in data sets.
        split: Of data sets.
        shard_tokens: In a file.

    The folder appears when all is written: a run that is stopped leaves none. Raises CorpusError for a folder with
    anything else in it, or a corpus of other sources or another tokenizer, and for a source that is no text; BookError
    for a book that cannot be read.
    """
    folder = Path(folder).resolve()
    has_corpus = (folder / manifest.FILE).is_file()
    if not has_corpus and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CorpusError(f"{folder} exists and is not an empty folder: give a new one")
    opened = [_open(os.fspath(source), field, split) for source in sources]
    wanted = _fingerprint(opened, tokenizer)
    if has_corpus:
        corpus = Corpus.open(folder)
        if corpus.manifest.sources != wanted:
            raise CorpusError(
                f"{folder} holds a corpus of other sources or of another tokenizer: delete it, or give a new folder"
            )
        return corpus
    with _folder_aside(folder) as part:
        _write(opened, tokenizer, part, wanted, shard_tokens, report or (lambda progress: None))
    return Corpus.open(folder)


def _open(source: str, field: str, split: str) -> Source:
    if source.startswith(PREFIX):
        return Dataset(source.removeprefix(PREFIX), split, field)
    return Files(Path(source), field)


def _fingerprint(sources: Sequence[Source], tokenizer: Tokenizer) -> str:
    made_from = [manifest.FORMAT, tokenizer.fingerprint, [source.identity() for source in sources]]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


@contextmanager
def _folder_aside(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, which takes its place at the end, and which is removed on a failure."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        try:
            yield part
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        why = error.strerror or error
        raise CorpusError(f"{folder}: cannot be written ({why}); check the folder and its space") from error


def _write(
    sources: Sequence[Source], tokenizer: Tokenizer, folder: Path, wanted: str, shard_tokens: int, report: Report
) -> None:
    vocab_size = tokenizer.vocab_size
    shards = _Shards(folder, "uint16" if vocab_size <= 1 << 16 else "uint32", shard_tokens)
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    before, per_source = 0, []
    for source, size in zip(sources, sizes, strict=True):
        documents = len(shards.ends)
        for read in _tokenise(source, tokenizer, shards):
            report(Progress(shards.tokens, before + read, total))
        before += size or 0
        per_source.append(len(shards.ends) - documents)
    shards.close()
    if not shards.tokens:
        raise CorpusError("the sources have no text in them: give others")
    spans = divide(np.array(shards.ends), np.array(shards.hashes), per_source)
    for name, span in spans.items():
        span.astype("<i8").tofile(folder / manifest.split_name(name))
    tokenizer.save(folder)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    counts = {name: len(span) for name, span in spans.items()}
    Manifest(manifest.FORMAT, wanted, shards.dtype.name, vocab_size, shards.tokens, shard_tokens, counts, files).write(
        folder
    )


def _tokenise(source: Source, tokenizer: Tokenizer, shards: _Shards) -> Iterator[int]:
    """Write a source's documents; gives the bytes of it that were read, now and then."""
    end = None if tokenizer.end_of_text is None else np.array([tokenizer.end_of_text])
    blocks: list[str] = []
    last: list[bool] = []
    waiting = 0

    def flush() -> None:
        for ids, is_last in zip(tokenizer.encode_batch(blocks), last, strict=True):
            shards.add(ids)
            if is_last:
                shards.end_document(end)

    for document in source.documents():
        for block in cut_blocks(document.pieces, BLOCK_CHARS):
            if waiting >= BATCH_CHARS:
                flush()
                blocks, last, waiting = [], [], 0
                yield document.bytes
            blocks.append(block)
            last.append(False)
            waiting += len(block)
        if last:
            last[-1] = True
    flush()


class _Shards:
    """Tokens as they come, in files of ``shard_tokens``; where each document ends, and a hash of its tokens."""

    def __init__(self, folder: Path, dtype: str, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, np.dtype(dtype).newbyteorder("<"), shard_tokens
        self.tokens = 0
        self.ends, self.hashes = array("q"), array("Q")
        self._digest = hashlib.blake2b(digest_size=8)
        self._file: BinaryIO | None = None

    def add(self, ids: NDArray[np.integer]) -> None:
        content = ids.astype(self.dtype)
        self._digest.update(content.tobytes())
        self._write(content)

    def end_document(self, end: NDArray[np.integer] | None) -> None:
        """All of the document was added, but for the end-of-text token. One without any token is no document."""
        if self.tokens == (self.ends[-1] if self.ends else 0):
            return
        self.hashes.append(int.from_bytes(self._digest.digest(), "little"))
        self._digest = hashlib.blake2b(digest_size=8)
        if end is not None:
            self._write(end.astype(self.dtype))
        self.ends.append(self.tokens)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, content: NDArray[np.integer]) -> None:
        while len(content):
            number, used = divmod(self.tokens, self.shard_tokens)
            if not used:
                self.close()
                self._file = (self.folder / manifest.shard_name(number)).open("xb")
            assert self._file is not None
            here = content[: self.shard_tokens - used]
            self._file.write(here.tobytes())
            self.tokens += len(here)
            content = content[len(here) :]
