"""Read a book, ask it questions: the one path that the command, the server and Python all take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_ssm.book.answers import Answer, Reply, Seconds, check, plain_prompt, reply, windows_for
from mamba_ssm.book.blocks import text_of
from mamba_ssm.book.engine import Engine
from mamba_ssm.book.find import Finder
from mamba_ssm.book.progress import bar
from mamba_ssm.book.rank import KEPT, rank
from mamba_ssm.book.relevance import BINS, Relevance, relevance
from mamba_ssm.book.source import BookInfo, FileSource, Report, Source
from mamba_ssm.book.store import StoredSource, is_saved, open_stored, store
from mamba_ssm.esi.replay import Context
from mamba_ssm.esi.search import Query

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PASSAGES = 8
MAX_NEW_TOKENS = 32


class Book:
    """A book to ask questions. Use it in a ``with``, or close it: what was read lies in a temporary file."""

    def __init__(self, source: Source, engine: Engine, group: ProcessGroup | None = None) -> None:
        self._source, self.engine, self.group = source, engine, group

    @property
    def info(self) -> BookInfo | None:
        """What was read; None for a streamed book before its first question."""
        return self._source.info

    def ask(
        self,
        question: str,
        *,
        top_k: int | None = None,
        passages: int = PASSAGES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        esi: bool = True,
        context: str = "",
    ) -> Answer:
        """Answer a question.

        Args:
            top_k: windows that the answer may lie in, beside the two ranked first; the model's own number by default.
            passages: how many passages of evidence to give.
            max_new_tokens: the longest answer.
            esi: False reads the whole book with the model alone, without search; there is then no evidence.
            context: what the question leaves out, as the question before it: it is searched for, too, and not answered.

        Raises QuestionError for a question without words or too long.
        """
        return self.ask_all(
            [question], top_k=top_k, passages=passages, max_new_tokens=max_new_tokens, esi=esi, context=context
        )[0]

    def ask_all(
        self,
        questions: Sequence[str],
        *,
        top_k: int | None = None,
        passages: int = PASSAGES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        esi: bool = True,
        context: str = "",
        report: Report | None = None,
    ) -> list[Answer]:
        """Answer questions, all in one pass over the book. See ``ask``."""
        options = {
            "top_k": top_k,
            "passages": passages,
            "max_new_tokens": max_new_tokens,
            "esi": esi,
            "context": context,
        }
        return list(self.ask_each(questions, report=report, **options))  # type: ignore[arg-type]

    def ask_each(
        self,
        questions: Sequence[str],
        *,
        top_k: int | None = None,
        passages: int = PASSAGES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        esi: bool = True,
        context: str = "",
        report: Report | None = None,
    ) -> Iterator[Answer]:
        """As ``ask_all``, an answer as soon as it is there. ``report`` is told how far the reading is."""
        check(questions, top_k, passages, max_new_tokens)
        if not questions:
            return
        started = time.perf_counter()
        top_k = top_k or self.engine.config.top_k
        if esi:
            replies, searched = self._search(questions, context, top_k, passages, max_new_tokens, report)
        else:
            replies, searched = self._read_plainly(questions, max_new_tokens, report), 0.0
        read = time.perf_counter() - started - searched
        for question in questions:
            started = time.perf_counter()
            said = next(replies)
            seconds = Seconds(read, searched, time.perf_counter() - started)
            assert self.info is not None
            yield said.answer(question, passages, self.engine.name, self.info, seconds)

    def _search(
        self, questions: Sequence[str], context: str, top_k: int, passages: int, limit: int, report: Report | None
    ) -> tuple[Iterator[Reply], float]:
        """Search the book for all questions. Returns what will answer them, and the seconds that the search took."""
        engine = self.engine
        embedded = [engine.question(question) for question in questions]
        k = windows_for(engine, top_k, passages)
        texts, sought = questions, embedded
        if context.strip():
            texts = [f"{question} {context}" for question in questions]
            sought = [engine.question(text) for text in texts]
        finder = self._finder([question.query for question in sought], KEPT * k)
        searched = 0.0
        for block, keys in self._source.blocks(report, finder.wants):
            started = time.perf_counter()
            finder.push(block, keys)
            searched += time.perf_counter() - started
        found, counts = finder.found(), finder.counts()
        ranked = [rank(*each, counts, k) for each in zip(texts, sought, found, strict=True)]
        asked = zip(questions, embedded, ranked, strict=True)
        return (reply(engine, *each, top_k, limit) for each in asked), searched

    def _finder(self, queries: Sequence[Query], k: int) -> Finder:
        if self.group is None:
            return Finder(queries, k, self.engine)
        from mamba_ssm.book.parallel import PartFinder  # some builds of PyTorch have no process groups

        return PartFinder(queries, k, self.engine, self.group)

    def _read_plainly(self, questions: Sequence[str], limit: int, report: Report | None) -> Iterator[Reply]:
        """Read the whole book with the model alone. Returns what will answer the questions from its state."""
        engine = self.engine
        context = Context(engine.model)
        for block in self._source.texts(report):
            context.read(engine.tokens(block.ids))
        prompts = [plain_prompt(engine, question) for question in questions]
        tokenizer = engine.tokenizer
        return (
            Reply(*context.fork().generate(prompt, limit, tokenizer.end_of_text, tokenizer.decode), evidence=[])
            for prompt in prompts
        )

    def relevance(self, question: str, bins: int = BINS, report: Report | None = None) -> Relevance:
        """How well each part of the book fits a question: the best window of each of at most ``bins`` runs of windows.

        The scores are the search's alone; evidence is ordered by what the reader makes of the best windows.
        Raises QuestionError for a question without words or too long.
        """
        if bins < 1:
            raise ValueError("bins must be at least 1")
        return relevance(self._source, self.engine, question, bins, report)

    def text(self, start: int = 0, end: int | None = None) -> str:
        """Characters start:end of the book's text, which the offsets of passages count."""
        return text_of(self._source.texts(), start, end)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was read to one file, for `load_book`. Raises BookError where that cannot be."""
        if isinstance(self._source, StoredSource):
            self._source.save(path)
        else:
            with self.stored() as book:
                book.save(path)

    def stored(self, report: Report | None = None) -> Book:
        """This book, read into a temporary file."""
        return Book(store(self._source, self.engine, "the temporary file", report), self.engine)

    def close(self) -> None:
        """Remove what was kept of the book."""
        if isinstance(self._source, StoredSource):
            self._source.close()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_book(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | Engine | None = None,
    device: str = "auto",
    group: ProcessGroup | None = None,
) -> Book:
    """A book that is read anew, streamed in bounded memory, for each call of ``ask`` or ``ask_all``; or a saved one.

    ``group``: the ranks of this process group read and search a part each. All of them open the same book, ask the same
    questions and get the same answers, those of one process.
    """
    engine = Engine.load(model, device)
    source: Source = open_stored(path, engine) if is_saved(Path(path)) else FileSource(path, engine)
    return Book(source, engine, group)


def read(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | Engine | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Book:
    """Read a book (.txt, .md, .html, .pdf, .epub) once, to ask it many questions.

    Args:
        model: folder or name on the hub; by default the model in this package.
        device: "auto", "cpu" or "cuda".
        progress: show a bar on standard error, if that is a terminal.

    Raises BookError, CheckpointError or BackendError, each a line that says what to do.
    """
    engine = Engine.load(model, device)
    with bar(progress) as report:
        return Book(FileSource(path, engine), engine).stored(report)


def load_book(
    path: str | os.PathLike[str], model: str | os.PathLike[str] | Engine | None = None, device: str = "auto"
) -> Book:
    """Open a book that was saved. Raises BookError if it is damaged or was read with another model."""
    engine = Engine.load(model, device)
    return Book(open_stored(path, engine), engine)
