"""Pretrain a language model on a corpus, or continue one: what ``mamba-esi train lm`` runs.

Shapes: B rows, L length, V padded vocabulary.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_ssm.book.engine import load_tokenizer
from mamba_ssm.errors import TrainingError
from mamba_ssm.models import checkpoint as model_files
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.ops.linear_cross_entropy import linear_cross_entropy
from mamba_ssm.training import checkpoints
from mamba_ssm.training.config import LMConfig
from mamba_ssm.training.corpus import Corpus, Packed, PackedBatches
from mamba_ssm.training.corpus.packing import NO_TARGET
from mamba_ssm.training.engine import CROSS_ENTROPY, Metrics, run
from mamba_ssm.training.loop import parameter_groups
from mamba_ssm.training.processes import processes
from mamba_ssm.training.throughput import matrix_parameters

BLOCKS = ("Block",)  # what FSDP2 gathers at a time


class LanguageModel:
    """The recipe: predict the next token of packed documents, each from a state of its own."""

    name = "lm"
    in_turns = False

    def __init__(self, model: MambaLMHeadModel, corpus: Corpus, config: LMConfig) -> None:
        self.model, self.config = model, config
        self.data, self.tokens = corpus.fingerprint, config.rows * config.length
        self.operations = 6 * matrix_parameters(model) * self.tokens
        packed = partial(PackedBatches, length=config.length, rows=config.rows, seed=config.seed)
        self._train = packed(corpus.split("train"))
        self._held_out, self._evaluated = None, 0
        if config.eval_every:
            held_out = corpus.split("held_out")
            if not held_out.tokens:
                raise TrainingError(f"{config.data} has no held-out text: prepare more, or give --eval-every 0")
            self._held_out = packed(held_out)
            self._evaluated = min(config.eval_batches, -(-held_out.tokens // self.tokens))
        for block in model.backbone.layers:
            if config.compile:
                block.forward = torch.compile(block.forward)
            if config.checkpoint_activations:  # around what is compiled: the compiler passes over what checkpoints
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        # A checkpoint's search and injection have no part in this loss.
        return parameter_groups(
            self.model.named_parameters(), self.config.lr, self.config.weight_decay, slow={"esi.": 0.0}
        )

    def batches(self, step: int, rank: int, ranks: int) -> Sequence[Packed]:
        return self._in_parts(self._train.at(step, rank, ranks))

    def held_out(self, rank: int, ranks: int) -> Iterator[Packed]:
        assert self._held_out is not None
        for step in range(self._evaluated):
            yield from self._in_parts(self._held_out.at(step, rank, ranks))

    def _in_parts(self, batch: Packed) -> Sequence[Packed]:
        parts = zip(*(tensor.chunk(self.config.accumulate) for tensor in batch), strict=True)
        return [Packed(*part) for part in parts]

    def weights(self, batch: Packed) -> dict[str, int]:
        return {CROSS_ENTROPY: int((batch.targets != NO_TARGET).sum())}

    def loss(self, batch: Packed) -> dict[str, Tensor]:
        hidden = self.model.backbone(batch.input_ids, seq_idx=batch.seq_idx)
        assert isinstance(hidden, Tensor)
        head: Any = self.model.lm_head
        targets = batch.targets.flatten()
        loss = linear_cross_entropy(hidden.flatten(0, 1), head.weight, targets, NO_TARGET)
        # The mean over no targets is none; such a batch counts for nothing.
        return {CROSS_ENTROPY: torch.where((targets != NO_TARGET).any(), loss, 0.0)}


def train_lm(
    config: LMConfig, resume: bool = False, report: Callable[[Metrics], None] = lambda metrics: None
) -> signal.Signals | None:
    """Train, and write the model to ``config.out``, as `MambaLMHeadModel.from_pretrained` loads it.

    Returns the signal that ended it early, if one did; the model is not written then. Raises TrainingError,
    CorpusError and CheckpointError.
    """
    corpus = Corpus.open(config.data)
    with processes(config, BLOCKS) as accelerator:
        if config.rows % (accelerator.num_processes * config.accumulate):
            raise TrainingError(
                f"{config.rows} rows of a step cannot be shared evenly by {accelerator.num_processes} processes "
                f"in {config.accumulate} parts: give another number with --rows or --accumulate"
            )
        model = _model(config, corpus)
        if config.parallel == "fsdp2" and model.esi is not None:
            raise TrainingError(
                f"{config.start} has ESI weights, scalars among them, which FSDP2 cannot shard: use ddp"
            )
        out = Path(config.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{out} cannot be made ({error.strerror}): give another folder with --out") from error
        stopped = run(LanguageModel(model, corpus, config), config, accelerator, resume, report)
        if stopped is None:
            tensors = checkpoints.whole(model_files.tensors_of(model, model.config.tie_embeddings))
            if accelerator.is_main_process:
                _write(tensors, model, corpus, out)
        return stopped


def _model(config: LMConfig, corpus: Corpus) -> MambaLMHeadModel:
    """In fp32, on the CPU; the same in every process."""
    if config.start is None:
        torch.manual_seed(config.seed)
        new, vocabulary = config.new, corpus.vocab_size
        sizes = MambaConfig(new.d_model, n_layer=new.n_layer, vocab_size=vocabulary, ssm_cfg={"d_state": new.d_state})
        try:
            return MambaLMHeadModel(sizes, device="cpu")
        except ValueError as error:
            raise TrainingError(f"new: {error}") from error
    model = MambaLMHeadModel.from_pretrained(config.start, device="cpu", dtype=torch.float32)
    if not load_tokenizer(config.start, model.config.vocab_size).same_vocabulary(corpus.tokenizer()):
        raise TrainingError(f"{config.data} is in other tokens than {config.start}'s: prepare it with its tokenizer")
    return model


def _write(tensors: dict[str, Tensor], model: MambaLMHeadModel, corpus: Corpus, out: Path) -> None:
    try:
        corpus.tokenizer().save(out)
        model_files.write(tensors, model.config.to_dict(), out)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"no model can be written to {out} ({error}): make room, then --resume") from error
