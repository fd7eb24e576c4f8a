"""The three stages in which ESI is learned: the search, the reader, the language model.

Each is a recipe of training/engine.py; train_esi runs the same on one GPU, which replays the passes of a step. Data lie
on ``device``: where the model is for the one, on the CPU for the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.loop import Parts, parameter_groups
from mamba_ssm.training.plan import READ, Lessons, Plan, Source
from mamba_ssm.training.reading import (
    IGNORE,
    ReadBatch,
    ReadBatches,
    answer_loss,
    answer_sequences,
    order_loss,
    places_of,
    plain_sequences,
    span_loss,
)
from mamba_ssm.training.retrieval import SearchBatch, SearchBatches, right_windows, search_loss, share

RECALL_TURN = 4  # one step in so many is the recall tasks'
HEADING = 1  # which of these steps the search learns from headings
SEARCH_TURN = 4  # one step of the reader in so many goes on to train the search
QUESTIONS = 256  # in a batch of the search
WORD_DROPOUT = 0.1
PLAIN_TURN = 3  # one step in so many, the language model also learns to do without ESI
EVALUATED = 16  # batches of questions that were held out, at most
SEARCH, READER, LANGUAGE, HELD_OUT = range(4)  # what is drawn for each differs

Batch = TypeVar("Batch")


class Stage(ABC, Generic[Batch]):
    """What the three have in common. ``name``: of the stage, and of its folder. ``rates``: see Plan."""

    name: str
    rates: Mapping[str, float]
    tokens: int
    operations = 0
    in_turns = False

    def __init__(self, model: MambaLMHeadModel, plan: Plan, lessons: Lessons) -> None:
        self.model, self.plan, self.lessons, self.data = model, plan, lessons, lessons.name
        layers, n_enc = len(model.backbone.layers), model.searcher().config.n_enc
        self._encoder = [f"backbone.layers.{layer}." for layer in range(n_enc)]
        after = [f"backbone.layers.{layer}." for layer in range(n_enc, layers)]
        # A head that is tied to the embedding goes by the embedding's name.
        self._speaks = dict.fromkeys([*after, "backbone.norm_f", "lm_head", "esi.injection"], 0.0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model.named_parameters(), self.plan.lr, self.plan.decay, dict(self.rates))

    @abstractmethod
    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """A process's share of what a step learns from."""

    @abstractmethod
    def held_out(self, rank: int, ranks: int) -> Iterator[Batch]: ...

    @abstractmethod
    def weights(self, batch: Batch) -> dict[str, int]: ...

    @abstractmethod
    def loss(self, batch: Batch) -> Parts: ...

    def batches(self, step: int, rank: int, ranks: int) -> Sequence[Batch]:
        return [self.at(step, rank, ranks)]

    def _turn(self, step: int) -> tuple[int, int]:
        """Whose turn a step is, 0 for the examples, 1 for the recall tasks if there are any; how many it had before."""
        if len(self.lessons.sources) == 1:
            return 0, step
        before, place = divmod(step, RECALL_TURN)
        return (1, before) if place == RECALL_TURN - 1 else (0, step - before)

    def _searching(self, stage: int) -> Callable[[int, int, int], SearchBatch]:
        """A batch of the search, by step, rank and ranks."""
        plan, lessons = self.plan, self.lessons
        asked = [source.examples for source in lessons.sources]
        if lessons.headings is not None:
            asked.append(lessons.headings)
        batches = [
            SearchBatches(
                examples, plan.crops, plan.crop, QUESTIONS, (plan.seed, stage, n), WORD_DROPOUT, lessons.device
            )
            for n, examples in enumerate(asked)
        ]

        def at(step: int, rank: int, ranks: int) -> SearchBatch:
            source, number = self._turn(step)
            if lessons.headings is not None and step % RECALL_TURN == HEADING:
                source, number = -1, step // RECALL_TURN
            return batches[source].at(number, rank, ranks)

        return at

    def _reading(self, source: Source, stage: int, number: int) -> ReadBatches:
        plan, config = self.plan, self.model.searcher().config
        rows = min(max(1, plan.batch * READ // source.read), len(source.examples.questions))
        seed = (plan.seed, stage, number)
        return ReadBatches(
            source.examples, source.mined, rows, source.read, config, seed, self.lessons.device, source.taught
        )


class SearchStage(Stage[SearchBatch]):
    """Find the windows that hold the answers among all of some articles'."""

    name = "search"

    def __init__(self, model: MambaLMHeadModel, plan: Plan, lessons: Lessons) -> None:
        super().__init__(model, plan, lessons)
        self.rates = self._speaks | {"esi.reader": 0.0} | dict(plan.search_rates)
        self.tokens = plan.crops * plan.crop
        self._search = self._searching(SEARCH)

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> SearchBatch:
        return self._search(step, rank, ranks)

    def held_out(self, rank: int, ranks: int) -> Iterator[SearchBatch]:
        plan, held_out = self.plan, self.lessons.held_out
        assert held_out is not None
        batches = SearchBatches(held_out.examples, plan.crops, plan.crop, QUESTIONS, (plan.seed, HELD_OUT, 0))
        for step in range(min(EVALUATED, -(-len(held_out.examples.questions) // QUESTIONS))):
            yield batches.at(step, rank, ranks)

    def weights(self, batch: SearchBatch) -> dict[str, int]:
        return {"search": int(right_windows(batch, self.model.searcher().config).any(-1).sum())}

    def loss(self, batch: SearchBatch) -> Parts:
        return {"search": search_loss(self.model, batch)}


class Turn(NamedTuple):
    """What a step of the reader learns from, and where it is the search's turn, that too."""

    read: ReadBatch
    search: SearchBatch | None


class ReaderStage(Stage[Turn]):
    """Point at the answers in the windows that the search found; what was found is in ``lessons``."""

    name = "reader"
    in_turns = True  # the search's

    def __init__(self, model: MambaLMHeadModel, plan: Plan, lessons: Lessons) -> None:
        super().__init__(model, plan, lessons)
        self.rates = self._speaks | dict(plan.read_rates)
        self.tokens = plan.batch * READ * model.searcher().config.window
        self._search = self._searching(READER)
        self._read = [self._reading(source, READER, n) for n, source in enumerate(lessons.sources)]

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Turn:
        source, number = self._turn(step)
        # The search goes on learning, lest the encoder forget it; of all sources, in turn.
        searches = step % SEARCH_TURN == (step // SEARCH_TURN) % SEARCH_TURN
        search = self._search(step, rank, ranks) if searches else None
        return Turn(self._read[source].at(number, rank, ranks), search)

    def held_out(self, rank: int, ranks: int) -> Iterator[Turn]:
        assert self.lessons.held_out is not None
        for batch in held_out_batches(self._reading(self.lessons.held_out, HELD_OUT, 0), rank, ranks):
            yield Turn(batch, None)

    def weights(self, turn: Turn) -> dict[str, int]:
        """Without a teacher, whose places count by question."""
        config, batch = self.model.searcher().config, turn.read
        weights = {"span": int(places_of(batch, config)[0].any(-1).sum())}
        if turn.search is not None:
            weights["search"] = int(right_windows(turn.search, config).any(-1).sum())
        return weights

    def loss(self, turn: Turn) -> Parts:
        searcher, batch = self.model.searcher(), turn.read
        question = searcher.ask(batch.questions)
        memory = searcher.read(question, batch.windows, batch.scores)
        assert memory is not None
        parts = {"span": span_loss(self.model, memory, batch)}
        if turn.search is not None:
            parts["search"] = search_loss(self.model, turn.search)
            if batch.taught is not None:
                parts["order"] = order_loss(self.model, question, batch)
        return parts


class Said(NamedTuple):
    """What a step of the language model learns to say: ids and targets, with the windows injected, and without ESI."""

    read: ReadBatch
    answer: tuple[Tensor, Tensor]
    plain: tuple[Tensor, Tensor] | None


class LanguageStage(Stage[Said]):
    """Say the answers, with the windows injected; what search and reader see stays as it is."""

    name = "language"

    def __init__(self, model: MambaLMHeadModel, plan: Plan, lessons: Lessons) -> None:
        super().__init__(model, plan, lessons)
        fixed = dict.fromkeys(["backbone.embedding", *self._encoder, "esi.search", "esi.reader"], 0.0)
        self.rates = fixed | dict.fromkeys(["backbone", "lm_head"], plan.language_rate)
        self._read = self._reading(lessons.sources[0], LANGUAGE, 0)
        self._text = torch.from_numpy(lessons.sources[0].examples.ids)
        self.tokens = self._read.rows * READ * model.searcher().config.window

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Said:
        batch = self._read.at(step, rank, ranks)
        plain = None
        if step % PLAIN_TURN == 0 and self.plan.plain_rows:
            # Of the step's first questions, those that this process has; one of its own, where it has none of them.
            rows = len(range(self.plan.plain_rows)[share(self._read.rows, rank, ranks)])
            plain = plain_sequences(batch, self._text, max(1, rows), self.plan.frame)
        return Said(batch, self._answer(batch), plain)

    def _answer(self, batch: ReadBatch) -> tuple[Tensor, Tensor]:
        return answer_sequences(batch.questions, batch.answers, frame=self.plan.frame)

    def held_out(self, rank: int, ranks: int) -> Iterator[Said]:
        assert self.lessons.held_out is not None
        for batch in held_out_batches(self._reading(self.lessons.held_out, HELD_OUT, 0), rank, ranks):
            yield Said(batch, self._answer(batch), None)

    def weights(self, said: Said) -> dict[str, int]:
        parts = {"answer": said.answer} if said.plain is None else {"answer": said.answer, "plain": said.plain}
        return {name: int((targets != IGNORE).sum()) for name, (_, targets) in parts.items()}

    def loss(self, said: Said) -> Parts:
        batch, searcher = said.read, self.model.searcher()
        with torch.no_grad():
            memory = searcher.read(searcher.ask(batch.questions), batch.windows, batch.scores)
        parts = {"answer": answer_loss(self.model, memory, *said.answer)}
        if said.plain is not None:
            parts["plain"] = answer_loss(self.model, None, *said.plain)
        return parts


def held_out_batches(batches: ReadBatches, rank: int, ranks: int) -> Iterator[ReadBatch]:
    for step in range(min(EVALUATED, len(batches.questions) // batches.rows)):
        yield batches.at(step, rank, ranks)
