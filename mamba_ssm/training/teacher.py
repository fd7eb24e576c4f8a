"""A teacher for the reader: MiniLM (Apache-2.0), tuned to point at answers in the windows that the search found.

It reads its own WordPieces of a window; what it says is moved to our tokens, so that the reader can learn from it.
Only training needs it, and the extra `evals`, for transformers.

Shapes: Q questions, K windows, W tokens of a window with its margins, G gold spans, T tokens and P pieces of all texts,
M pieces of a question, L pieces of a question and a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mamba_ssm.training.evaluate import window_ids
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.loop import Parts, train
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.reading import ReadBatch, Taught, right_places

CLS, SEP, PAD = 101, 102, 0
UNUSED = ("pooler.", "embeddings.position_ids")  # of a checkpoint's tensors
MAX_QUESTION, LENGTH = 32, 136  # pieces of a question, and of all that is read at once: 99.9% of them are shorter
SCORE_SHARE = 0.3  # of the search's score in a place's logits, at the start; as in our reader
LABELLED = 128  # questions at a time


@dataclass(frozen=True)
class Pieces:
    """The WordPieces of examples: ids (P,), questions (Q, M), 0 where shorter, and of each of our tokens the piece with
    its first and with its last character, first and last (T,)."""

    ids: Tensor
    questions: Tensor
    first: Tensor
    last: Tensor

    def to(self, device: torch.device | str) -> Pieces:
        return Pieces(*(tensor.to(device).long() for tensor in asdict(self).values()))

    def save(self, path: Path) -> None:
        save_file({name: tensor.int().contiguous() for name, tensor in asdict(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> Pieces:
        return cls(**load_file(path))


def pieces_of_tokens(
    text: str, starts: NDArray[np.int64], ends: NDArray[np.int64], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pieces with the first and the last character, that is no white space, of tokens.

    starts and ends (T,) of tokens and offsets (P, 2) of pieces, in characters of the text -> two (T,).
    """
    spoken = [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    first = starts + np.array([len(part) - len(part.lstrip()) for part in spoken])
    last = np.maximum(ends - 1 - np.array([len(part) - len(part.rstrip()) for part in spoken]), first)
    top = len(offsets) - 1
    return (
        np.searchsorted(offsets[:, 1], first, "right").clip(0, top),
        (np.searchsorted(offsets[:, 0], last, "right") - 1).clip(0, top),
    )


def minilm(weights: dict[str, Tensor]) -> Any:
    """transformers' BertModel, without a pooler, of these weights: a MiniLM's, whose heads are 32 wide."""
    from transformers import BertConfig, BertModel

    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(UNUSED)}
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")),
        num_attention_heads=width // 32,
        intermediate_size=len(weights["encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
        attn_implementation="sdpa",
    )
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(weights)
    return model


class Teacher(nn.Module):
    """Points at the first and the last of our tokens of an answer, as the reader does."""

    def __init__(self, weights: dict[str, Tensor], pieces: Pieces, margin: int) -> None:
        """``weights``: a BERT's by transformers' names, of MiniLM's form; ``margin``: as in ESIConfig."""
        super().__init__()
        self.margin = margin
        self.bert = minilm(weights)
        self.span = nn.Linear(self.bert.config.hidden_size, 2)
        self.score_weight = nn.Parameter(torch.full((2,), SCORE_SHARE))
        self.nothing = nn.Parameter(torch.zeros(2))
        self.pieces = pieces

    def forward(self, numbers: Tensor, windows: Tensor, starts: Tensor, scores: Tensor) -> Tensor:
        """Logits (Q, K, W, 2) for windows of token ids (Q, K, W) at ``starts`` (Q, K), of the questions ``numbers``."""
        pieces, (Q, K, W) = self.pieces, windows.shape
        asked = pieces.questions[numbers, :MAX_QUESTION]
        n_asked = (asked > 0).sum(1)[:, None, None]
        tokens = starts.clamp(min=0)[..., None] + torch.arange(-self.margin, W - self.margin, device=starts.device)
        tokens = tokens.clamp(0, len(pieces.first) - 1)
        first, last = pieces.first[tokens], pieces.last[tokens]
        origin, n_read = first[..., :1], last[..., -1:] - first[..., :1] + 1
        # [CLS] question [SEP] window [SEP]
        at = torch.arange(LENGTH, device=starts.device)
        begin = n_asked + 2
        end = (begin + n_read).clamp(max=LENGTH - 1)
        question = nn.functional.pad(asked, (1, LENGTH - 1 - asked.shape[1]))[:, None].expand(Q, K, LENGTH)
        text = pieces.ids[(origin + at - begin).clamp(0, len(pieces.ids) - 1)]
        ids = torch.where(at < begin, question, text)
        ids = ids.masked_fill(at == 0, CLS).masked_fill((at == begin - 1) | (at == end), SEP)
        ids = ids.masked_fill(at > end, PAD)
        read = self.bert(
            input_ids=ids.flatten(0, 1),
            attention_mask=(at <= end).flatten(0, 1).long(),
            token_type_ids=(at >= begin).expand(Q, K, LENGTH).flatten(0, 1).long(),
        ).last_hidden_state
        logits = self.span(read).float().unflatten(0, (Q, K))
        places = [(piece - origin + begin).clamp(0, LENGTH - 1) for piece in (first, last)]
        moved = torch.stack([logits[..., i].gather(2, place) for i, place in enumerate(places)], -1)
        moved = moved + (scores.masked_fill(scores == float("-inf"), 0.0)[..., None] * self.score_weight)[:, :, None]
        return moved.masked_fill((windows == 0)[..., None], float("-inf"))

    def loss(self, batch: ReadBatch) -> Parts:
        """Cross-entropy of the right places, as the reader's."""
        logits = self(batch.numbers, batch.windows, batch.starts, batch.scores).flatten(1, 2)
        logits = torch.cat([logits, self.nothing.expand(len(logits), 1, 2)], 1)
        window = batch.windows.shape[2] - 2 * self.margin
        right = right_places(batch.starts, batch.gold, window, self.margin)
        return {"teacher": any_of_loss(logits[..., 0], right[0]) + any_of_loss(logits[..., 1], right[1])}

    @torch.no_grad()
    def label(self, examples: Examples, mined: Sequence[tuple[Tensor, Tensor]], window: int) -> list[Taught]:
        """What the teacher makes of all windows found: starts and scores (all questions, K) for each kind of book."""
        device = self.nothing.device
        ids, taught = torch.from_numpy(examples.ids).to(device), []
        for all_starts, all_scores in mined:
            logits = torch.empty(*all_starts.shape, window + 2 * self.margin, 2, dtype=torch.float16, device=device)
            for numbers in torch.arange(len(all_starts)).split(LABELLED):
                starts, scores = all_starts[numbers].to(device), all_scores[numbers].to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    windows = window_ids(ids, starts, window, self.margin)
                    found = self(numbers.to(device), windows, starts, scores)
                logits[numbers.to(device)] = found.clamp(min=-6e4).half()
            taught.append(Taught(logits, self.nothing.detach().float()))
        return taught


def tune(teacher: Teacher, batches: Iterator[ReadBatch], steps: int, lr: float, log: Callable[[str], None]) -> None:
    """Train a teacher on windows that the search found, in place."""
    train(teacher, teacher.loss, steps, lr, batches, warmup=min(200, 1 + steps // 7), log=log)
