"""Texts with questions about them, as rectangular arrays: what all arms train on and are measured by.

Shapes: N texts, L tokens of a text, P questions a text, M tokens of a question, S of an answer, K ranked windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_ssm.text.tokenizer import Tokenizer

QUESTION_TOKENS, ANSWER_TOKENS = 32, 15
WINDOW, STRIDE = 64, 32  # of the windows that are ranked, those of ESIConfig
RANKINGS = ("bm25", "minilm", "fusion")
TRAINING = ("needles", "articles")
DEVELOPMENT = "development"
TESTS = {"needles, 4k": 4032, "needles, 16k": 16320, "needles, 64k": 65472, "articles, 6k": 5952}
"""Tokens of a text in each test: whole blocks of ESI, so that nothing is padded."""


@dataclass(frozen=True)
class Batch:
    """texts (A, L); questions (Q, M), answers (Q, S), 0 where shorter; each one's text (Q,) and its answer's first and
    last token there, gold (Q, 2); windows as other searches rank them, (Q, K) each."""

    texts: Tensor
    questions: Tensor
    answers: Tensor
    text: Tensor
    gold: Tensor
    rankings: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Texts:
    """ids (N, L), questions (N, P, M), answers (N, P, S), gold (N, P, 2), rankings (N, P, K)."""

    ids: Tensor
    questions: Tensor
    answers: Tensor
    gold: Tensor
    rankings: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Texts:
        moved = (part.to(device) for part in (self.ids, self.questions, self.answers, self.gold))
        return Texts(*moved, {name: ranked.to(device) for name, ranked in self.rankings.items()})

    def batch(self, texts: Tensor, asked: Tensor) -> Batch:
        """These texts (A,), and of each these questions (A, P')."""
        rows, columns = texts[:, None].expand(asked.shape).flatten(), asked.flatten()
        parts = (part[rows, columns].long() for part in (self.questions, self.answers, self.gold))
        questions, answers, gold = parts
        place = torch.arange(len(texts), device=texts.device)[:, None].expand(asked.shape).flatten()
        ranked = {name: ranking[rows, columns].long() for name, ranking in self.rankings.items()}
        return Batch(self.ids[texts].long(), questions, answers, place, gold, ranked)

    def batches(self, tokens: int) -> Iterator[Batch]:
        """All of it in order, so many tokens of text at a time, at least one text."""
        every = torch.arange(self.questions.shape[1], device=self.ids.device)
        for texts in torch.arange(len(self.ids), device=self.ids.device).split(max(1, tokens // self.ids.shape[1])):
            yield self.batch(texts, every.expand(len(texts), -1))


def training_batches(kinds: list[Texts], texts: int, per_text: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Endless batches of so many texts, as many of each kind, and ``per_text`` questions about each."""
    device, each = kinds[0].ids.device, texts // len(kinds)

    def draw(kind: Texts) -> Batch:
        chosen = rng.choice(len(kind.ids), each, replace=False)
        asked = rng.random((each, kind.questions.shape[1])).argsort(1)[:, :per_text]
        return kind.batch(torch.from_numpy(chosen).to(device), torch.from_numpy(asked).to(device))

    while True:
        parts = [draw(kind) for kind in kinds]
        columns = ("texts", "questions", "answers", "gold")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in columns}
        yield Batch(text=torch.cat([part.text + i * each for i, part in enumerate(parts)]), **joined)


def save(sets: dict[str, Texts], path: Path) -> None:
    """One file for all, in 16 bits where they suffice."""
    arrays = {}
    for name, texts in sets.items():
        for part in ("ids", "questions", "answers"):
            arrays[f"{name}/{part}"] = getattr(texts, part).to(torch.uint16)
        arrays[f"{name}/gold"] = texts.gold.int()
        arrays |= {f"{name}/{ranking}": ranked.to(torch.uint16) for ranking, ranked in texts.rankings.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file(arrays, partial)
    partial.replace(path)


def load(path: Path, device: torch.device | str, rankings: Path | None = None) -> dict[str, Texts]:
    """What `save` wrote, on the device, 32 bits a number; the windows' ranks are those of ``rankings``, if given."""
    sets: dict[str, dict[str, Tensor]] = {}
    for key, array in [*load_file(path).items(), *(load_file(rankings).items() if rankings else ())]:
        name, part = key.split("/")
        sets.setdefault(name, {})[part] = array.int().to(device)
    columns = ("ids", "questions", "answers", "gold")
    return {
        name: Texts(
            *(parts[column] for column in columns),
            rankings={by: parts[by] for by in RANKINGS if by in parts},
        )
        for name, parts in sets.items()
    }


def strings(rows: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Rows of tokens, 0 for none, as text."""
    return [tokenizer.decode([token for token in row if token]) for row in rows.tolist()]
