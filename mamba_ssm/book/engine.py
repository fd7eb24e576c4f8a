"""A model with its tokenizer, ready to read books.

Shapes: n tokens of a block, L those rounded up to half windows, R search width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_ssm.errors import BackendError, CheckpointError, QuestionError
from mamba_ssm.esi.module import Question, Searcher
from mamba_ssm.esi.reader import PAD, Memory
from mamba_ssm.esi.search import Headings, Keys
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import FILE as TOKENIZER_FILE
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.utils.hf import find_file

DEFAULT_MODEL = Path(__file__).parents[1] / "weights" / "default"
NEOX = "EleutherAI/gpt-neox-20b"  # the tokenizer of the published checkpoints, which carry none
NEOX_VOCABULARY = (50277, 50280)
MAX_QUESTION = 512
MAX_TITLE = 64  # tokens of a title that are matched
KEPT_TITLES = 4096  # whose keys take some megabytes
# Read before a text: the reader learned on texts that lie one after another, and finds less where there is nothing.
BEFORE = " and so it has been since then, as far as anyone in the whole town can tell today, to this day.\n\n"
KEYS_DEPEND_ON = ("n_enc", "d_search", "segment", "warmup", "window")  # of the sizes in ESIConfig
SEGMENTS = {"cpu": 128}  # of a block: many, for a question goes through all of a saved book's; they need memory
SEGMENTS_ELSEWHERE = 256
SEGMENTS_AT_ONCE = {"cpu": 32}  # enough to keep the cores busy, few enough for their caches


class Engine:
    """What reads and answers. ``name`` is what the model was asked for by."""

    def __init__(self, model: MambaLMHeadModel, tokenizer: Tokenizer, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.device = model.backbone.embedding.weight.device
        self.searcher: Searcher = model.searcher()
        self.config = self.searcher.config
        self._titles: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | Engine | None = None,
        device: str = "auto",
        esi: str | os.PathLike[str] | None = None,
    ) -> Engine:
        """The default model, or a folder, or a name on the hub. Raises CheckpointError, BackendError.

        ``esi`` is a folder that `mamba-esi train esi` wrote for that model.
        """
        if isinstance(model, Engine):
            return model
        if model is None and not (DEFAULT_MODEL / "config.json").is_file():
            raise CheckpointError("this installation has no default model: install mamba-esi again, or pass --model")
        folder = DEFAULT_MODEL if model is None else model
        loaded = MambaLMHeadModel.from_pretrained(folder, device=device_of(device), esi=esi)
        tokenizer = load_tokenizer(folder, loaded.config.vocab_size)
        if tokenizer.vocab_size > loaded.config.padded_vocab_size:
            raise CheckpointError(
                f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens and the model "
                f"{loaded.config.padded_vocab_size}: one of the two is another model's"
            )
        return cls(loaded, tokenizer, "default" if model is None else os.fspath(model))

    @property
    def block_tokens(self) -> int:
        """New tokens in a block. What is found does not depend on it."""
        return SEGMENTS.get(self.device.type, SEGMENTS_ELSEWHERE) * self.config.block

    @property
    def width(self) -> int:
        """R, the width of a key."""
        return self.model.config.d_model if self.model.esi is None else self.config.d_search

    def tokens(self, ids: NDArray[np.int32]) -> Tensor:
        """Ids on the model's device, as it wants them."""
        return torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(self.device)

    @torch.inference_mode()
    def question(self, text: str) -> Question:
        """A question, embedded, on its own, so that others asked with it change nothing."""
        ids = self.tokenizer.encode(text.strip()).ids
        if not 0 < len(ids) <= MAX_QUESTION:
            raise QuestionError(f"a question must have 1 to {MAX_QUESTION} tokens, not {len(ids)}: ask a shorter one")
        return self.searcher.ask(self.tokens(ids)[None])

    @torch.inference_mode()
    def read(self, question: Question, window_ids: Tensor, scores: Tensor) -> Memory | None:
        """As a Searcher does; where a CPU is faster at it, the products are of numbers rounded to bf16.

        Where a window's first tokens are PAD, for its text begins there, the end of another text is read before it.
        No answer lies in that.
        """
        margin = self.config.margin
        first = window_ids[..., :margin]
        missing = (first == PAD).cumprod(-1).bool()
        before = self._before[torch.arange(margin, device=self.device) - missing.sum(-1, keepdim=True)]
        whole = torch.cat([torch.where(missing, before, first), window_ids[..., margin:]], -1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.device.type == "cpu" and has_bf16_products()):
            memory = self.searcher.read(question, whole, scores)
        return None if memory is None else replace(memory, ids=window_ids)

    @cached_property
    def _before(self) -> Tensor:
        """(margin,)"""
        backwards = self.tokenizer.encode(BEFORE).ids[::-1]
        return self.tokens(np.resize(backwards, self.config.margin)[::-1].copy())

    @torch.inference_mode()
    def keys(self, ids: NDArray[np.int32], before: NDArray[np.int32]) -> Keys:
        """Keys of ids (n,), that follow ``before``, of the length of a warm-up. Keys after the last token are zero."""
        config = self.config
        row = self.tokens(np.concatenate([before, np.pad(ids, (0, -len(ids) % config.block))]))
        segments = row.unfold(0, config.segment, config.block)
        at_once = SEGMENTS_AT_ONCE.get(self.device.type, len(segments))
        parts = [Keys.of(self.searcher.segment_keys(part).flatten(0, 1)) for part in segments.split(at_once)]
        keys = Keys(torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]))
        keys.codes[len(ids) :] = 0
        return keys.map(lambda part: part[: half_windows(len(ids), config.stride)])

    @torch.inference_mode()
    def headings(self, titles: Sequence[str | None], under: NDArray[np.int64]) -> Headings | None:
        """Half windows stand under these of the titles: ``under`` (H,). None where they stand under none."""
        distinct = {title: number for number, title in enumerate(dict.fromkeys(t for t in titles if t and t.strip()))}
        if not distinct:
            return None
        keys = self._title_keys(list(distinct))
        title = torch.repeat_interleave(torch.arange(len(keys)), torch.tensor([len(k) for k in keys]))
        number = np.array([distinct.get(title or "", len(distinct)) for title in titles])
        place = torch.from_numpy(number[under])
        return Headings(torch.cat(keys), title.to(self.device), place.to(self.device), len(keys))

    def _title_keys(self, titles: list[str]) -> list[Tensor]:
        """Keys (T, R) of each title, read alone from a zero state; those of the last titles are kept."""
        known = self._titles
        if new := [title for title in titles if title not in known]:
            rows = [self.tokens(self.tokenizer.encode(f" {title}").ids[:MAX_TITLE]) for title in new]
            keys = self.searcher.title_keys(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD))
            fresh = {title: part[: len(row)].clone() for title, part, row in zip(new, keys, rows, strict=True)}
            known = {**known, **fresh}
            # Replaced, never changed: another thread may read it.
            self._titles = known if len(known) <= KEPT_TITLES else fresh
        return [known[title] for title in titles]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that keys depend on: keys of one model mean nothing to another."""
        sizes = {name: getattr(self.config, name) for name in KEYS_DEPEND_ON}
        digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
        wanted: tuple[str, ...] = ("backbone.embedding.",)
        if self.model.esi is not None:
            wanted += ("esi.search.", *(f"backbone.layers.{i}." for i in range(self.config.n_enc)))
        for name, tensor in sorted(self.model.state_dict().items()):
            if name.startswith(wanted):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@cache
def has_bf16_products() -> bool:
    """Whether this CPU has instructions for products of bf16, as far as this version of PyTorch can tell."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def half_windows(n: int, stride: int) -> int:
    """n rounded up to half windows."""
    return n + -n % stride


def device_of(name: str) -> torch.device:
    """A device by its name, or by "auto" the best there is. Raises BackendError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("there is no CUDA device here: pass --device cpu, or see `mamba-esi doctor`")
    return torch.device(name)


def load_tokenizer(model: str | os.PathLike[str], vocab_size: int) -> Tokenizer:
    """The tokenizer beside a checkpoint's weights, or the one that the published checkpoints were trained with."""
    try:
        return Tokenizer.from_folder(find_file(model, [TOKENIZER_FILE]).parent)
    except CheckpointError:
        if Path(model).expanduser().is_dir() or vocab_size not in NEOX_VOCABULARY:
            raise
    return Tokenizer.from_folder(find_file(NEOX, [TOKENIZER_FILE]).parent)
