"""A data set of the Hugging Face hub, or of a folder, as documents: a row each. Needs the extra ``train``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mamba_ssm.errors import CorpusError
from mamba_ssm.training.corpus.corpus import sha256_of
from mamba_ssm.training.corpus.source import Document

PREFIX = "hf:"
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


class Dataset:
    """``name`` is OWNER/NAME or OWNER/NAME/CONFIG on the hub, or a folder of parquet or of `save_to_disk`. Streamed.

    Code that comes with a data set is never run: ``datasets`` 4 and newer run none.
    """

    size: int | None = None

    def __init__(self, name: str, split: str, field: str) -> None:
        self.name, self.split, self.field = name, split, field
        self.folder = folder if (folder := Path(name).expanduser()).is_dir() else None

    def identity(self) -> object:
        """Of a folder, its content. Of the hub, the name: that a data set changed there is not seen."""
        if self.folder is None:
            return [self.name, self.split, self.field]
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        return [[str(file.relative_to(self.folder)), sha256_of(file)] for file in files] + [[self.split, self.field]]

    def documents(self) -> Iterator[Document]:
        with _its_failures(f"{PREFIX}{self.name}"):
            rows = self._load()
            columns = rows.column_names
            if columns is not None:
                if self.field not in columns:
                    has = ", ".join(columns)
                    raise CorpusError(f"{PREFIX}{self.name} has no {self.field!r} but {has}: name one with --field")
                rows = rows.select_columns([self.field])
            for number, row in enumerate(rows):
                if not isinstance(text := row.get(self.field), str):
                    raise CorpusError(
                        f"{PREFIX}{self.name}, row {number}: no text in {self.field!r}; name another --field"
                    )
                yield Document((text,), 0)

    def _load(self) -> Any:
        import datasets

        if self.folder is None:
            parts = self.name.split("/")
            return datasets.load_dataset(
                "/".join(parts[:2]), "/".join(parts[2:]) or None, split=self.split, streaming=True
            )
        if not any((self.folder / file).is_file() for file in SAVED):
            return datasets.load_dataset(str(self.folder), split=self.split, streaming=True)
        saved = datasets.load_from_disk(str(self.folder))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        return splits[self.split]


@contextmanager
def _its_failures(name: str) -> Iterator[None]:
    """What ``datasets`` raises, as CorpusError."""
    try:
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise CorpusError(
            f"{name}: data sets need a package that is missing ({error}): pip install 'mamba-esi[train]'"
        ) from error
    try:
        yield
    except (DatasetsError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CorpusError(f"{name}: cannot be read ({why}); check its name, its split and the connection") from error
