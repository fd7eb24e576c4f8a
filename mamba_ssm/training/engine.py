"""The training loop on Hugging Face Accelerate: one process, or many that share the rows of each step.

A `Recipe` says what is learned: a model, its loss on a batch, the batch of a step. The loop owns the rest: processes,
steps, checkpoints, evaluation, logs. A step is a function of its number, so a run that was killed and resumed learns
what it would have learned, to the last bit with as many processes.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mamba_ssm.errors import TrainingError
from mamba_ssm.training import checkpoints
from mamba_ssm.training.config import LoopConfig, contradictions
from mamba_ssm.training.schedule import cosine, wsd
from mamba_ssm.training.throughput import peak_flops

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = TypeVar("Batch")
"""A NamedTuple of tensors, on the CPU where the recipe makes it."""
Metrics = dict[str, float]
"""A line of metrics.jsonl."""
CROSS_ENTROPY = "cross_entropy"


class Recipe(Protocol[Batch]):
    """What a run learns. ``name``: of what is learned. ``tokens`` and ``operations``: of a step; of the latter 0 where
    nobody knows. ``data``: names what it learns from, and is kept with a checkpoint. ``in_turns``: whether some of what
    is trained has no part in some steps.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def name(self) -> str: ...

    tokens: int
    operations: int
    data: str
    in_turns: bool

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW, each with its highest learning rate."""

    def batches(self, step: int, rank: int, ranks: int) -> Sequence[Batch]:
        """What process ``rank`` of ``ranks`` learns from in a step, in parts that it takes one after the other."""

    def held_out(self, rank: int, ranks: int) -> Iterable[Batch]:
        """What it is evaluated on; as many batches in every process."""

    def weights(self, batch: Batch) -> dict[str, int]:
        """Of how many things each part of the loss of a batch is the mean: how much it counts in a step's.

        The parts are the same in every process.
        """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of a batch's loss, scalars, whose sum is learned; of CROSS_ENTROPY the perplexity is told, too."""


class _Objective(nn.Module, Generic[Batch]):
    """Model and loss as one module, for what DDP and FSDP2 do before and after a forward pass is of all of it."""

    def __init__(self, recipe: Recipe[Batch], device: torch.device, bf16: bool) -> None:
        super().__init__()
        self.model = recipe.model
        self._loss, self._device, self._bf16 = recipe.loss, device, bf16

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Not by Accelerate, which for FSDP2 casts parameters instead: A_log and D must stay in fp32.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return self._loss(batch)


def run(
    recipe: Recipe[Batch],
    config: LoopConfig,
    accelerator: Accelerator,
    resume: bool = False,
    report: Callable[[Metrics], None] = lambda metrics: None,
) -> signal.Signals | None:
    """Train, with ``resume`` from the newest checkpoint on. Returns the signal that ended it early, if one did.

    ``report`` is given each line of metrics.jsonl, in the first process. Raises TrainingError for a folder that holds
    another run, a loss that is not finite, and a full disk; the last checkpoint stays as it is.
    """
    loop = _Loop(recipe, config, accelerator, report)
    try:
        loop.begin(resume)
        with _told_to_stop() as told:
            return loop.run(told)
    finally:
        # There may be another run after this one.
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
        accelerator.free_memory()


class _Loop(Generic[Batch]):
    def __init__(
        self, recipe: Recipe[Batch], config: LoopConfig, accelerator: Accelerator, report: Callable[[Metrics], None]
    ) -> None:
        from accelerate.utils import DistributedDataParallelKwargs

        self.recipe, self.config, self.accelerator, self.report = recipe, config, accelerator, report
        self.out, self.step = Path(config.out), 0
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        bf16 = config.precision == "bf16"
        peak = peak_flops(accelerator.device) if bf16 and recipe.operations else None
        self.peak = None if peak is None else peak * self.ranks
        optimizer = torch.optim.AdamW(recipe.parameter_groups(), betas=(0.9, 0.95), fused=True)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=recipe.in_turns)
        self.objective, wrapped = accelerator.prepare(_Objective(recipe, accelerator.device, bf16), optimizer)
        self.optimizer: torch.optim.Optimizer = wrapped.optimizer
        if config.schedule == "wsd":
            self.schedule = wsd(config.steps, config.warmup, config.decay_steps or math.ceil(config.steps / 10))
        else:
            self.schedule = cosine(config.steps, config.warmup)

    def begin(self, resume: bool) -> None:
        """Load the newest checkpoint, or see that there is none."""
        newest = checkpoints.newest(self.out)
        if newest is not None:
            if not resume:
                raise TrainingError(f"{self.out} has checkpoints of a run: go on with --resume, or give another --out")
            state = checkpoints.read_state(newest)
            others = contradictions(state["config"], self.config)
            if state["data"] != self.recipe.data:
                others.append("other data")
            if others:
                raise TrainingError(f"{newest} is of another run ({', '.join(others)}): give that, or another --out")
            self.step = state["step"]
            checkpoints.load(newest, self.objective, self.optimizer)
        if self.config.tracker is not None:
            self.accelerator.init_trackers(
                f"mamba-esi-{self.recipe.name}", {k: str(v) for k, v in asdict(self.config).items()}
            )

    def run(self, told: Sequence[signal.Signals]) -> signal.Signals | None:
        config = self.config
        self.objective.train()
        since, started = self.step, time.perf_counter()
        while self.step < config.steps:
            parts, norm, stop = self._learn(bool(told))
            self.step += 1
            done = self.step == config.steps
            saves = done or stop or self.step % config.save_every == 0
            evaluates = config.eval_every and (done or self.step % config.eval_every == 0)
            if not (saves or evaluates or self.step % config.log_every == 0):
                continue
            metrics = self._checked(parts, norm)
            seconds = time.perf_counter() - started
            metrics["tokens_per_second"] = (self.step - since) * self.recipe.tokens / seconds
            if self.peak is not None:
                metrics["share_of_peak"] = (self.step - since) * self.recipe.operations / seconds / self.peak
            if evaluates:
                metrics |= self._evaluate()
            self._log(metrics)
            if saves:
                state = {"config": asdict(config), "data": self.recipe.data, "processes": self.ranks}
                checkpoints.save(self.out, self.step, self.objective, self.optimizer, state, config.keep)
            if stop and not done:
                return told[0] if told else signal.SIGTERM
            since, started = self.step, time.perf_counter()
        return None

    def _learn(self, stop: bool) -> tuple[dict[str, Tensor], Tensor, bool]:
        """One step. Returns this process's share of each part of the loss, the gradient's norm, and whether any process
        was told to stop.
        """
        seed = np.random.SeedSequence((self.config.seed, self.step, self.rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))
        batches = self.recipe.batches(self.step, self.rank, self.ranks)
        weights = [self.recipe.weights(batch) for batch in batches]
        sums = _summed(weights)
        *totals, stops = self._of_all(*sums.values(), stop)
        total = dict(zip(sums, totals, strict=True))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule(self.step)
        learned = []
        for index, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
            waits = index < len(batches)
            with self.accelerator.no_sync(self.objective) if waits else nullcontext():
                parts = self.objective(self._here(batch))
                # What counts for nothing anywhere has a total of 0.
                parts = {name: part * (weight[name] / max(1, total[name])) for name, part in parts.items()}
                self.accelerator.backward(sum(parts.values()) * self.ranks)  # the processes' mean gradient is taken
            learned.append({name: part.detach() for name, part in parts.items()})
        norm: Any = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return _summed(learned), norm.full_tensor() if hasattr(norm, "full_tensor") else norm, stops > 0

    def _of_all(self, *numbers: float) -> list[float]:
        """The sums of all processes' numbers."""
        if self.ranks == 1:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(together)
        return together.tolist()

    def _here(self, batch: Batch) -> Batch:
        from accelerate.utils import send_to_device

        return send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _checked(self, parts: dict[str, Tensor], norm: Tensor) -> Metrics:
        """Of the step that is over. Raises TrainingError where its loss or its gradient is not finite."""
        of_all = dict(zip(parts, self._of_all(*(part.item() for part in parts.values())), strict=True))
        metrics = {"step": self.step, **_told("", of_all), "gradient_norm": norm.item()}
        if not all(map(math.isfinite, metrics.values())):
            newest = checkpoints.newest(self.out)
            kept = f"{newest} is the last good checkpoint" if newest else "there is no checkpoint yet"
            raise TrainingError(
                f"the loss is {metrics['loss']} and its gradient's norm {norm.item()} at step {self.step}: "
                f"lower the learning rate with --lr; {kept}"
            )
        return metrics | {"lr": self.optimizer.param_groups[0]["lr"]}

    @torch.no_grad()
    def _evaluate(self) -> Metrics:
        self.objective.eval()
        sums, counts = [], []
        for batch in self.recipe.held_out(self.rank, self.ranks):
            weights = self.recipe.weights(batch)
            counts.append(weights)
            sums.append({name: part * weights[name] for name, part in self.objective(self._here(batch)).items()})
        self.objective.train()
        summed, count = _summed(sums), _summed(counts)
        totals = self._of_all(*(part.item() for part in summed.values()), *(count[name] for name in summed))
        means = {
            name: total / max(1, n)
            for name, total, n in zip(summed, totals[: len(summed)], totals[len(summed) :], strict=True)
        }
        metrics = _told("held_out_", means)
        if CROSS_ENTROPY in means:
            metrics["held_out_perplexity"] = math.exp(means[CROSS_ENTROPY])
        return metrics

    def _log(self, metrics: Metrics) -> None:
        if self.accelerator.is_main_process:
            path = self.out / "metrics.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(metrics) + "\n")
            except OSError as error:
                raise TrainingError(f"{path} cannot be written ({error.strerror}): make room, then --resume") from error
            self.report(metrics)
        self.accelerator.log(metrics, step=self.step)


def _summed(many: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums of each part, by its name."""
    sums: dict[str, Any] = {}
    for parts in many:
        for name, part in parts.items():
            sums[name] = sums.get(name, 0) + part
    return sums


def _told(prefix: str, parts: dict[str, float]) -> Metrics:
    """The loss, and its parts, where it is not all one."""
    named = {} if parts.keys() == {CROSS_ENTROPY} else {f"{prefix}{name}": part for name, part in parts.items()}
    return {f"{prefix}loss": sum(parts.values()), **named}


@contextmanager
def _told_to_stop() -> Iterator[Sequence[signal.Signals]]:
    """A list that SIGINT and SIGTERM are put into: any number, for a launcher repeats what a terminal sent as well."""
    told: list[signal.Signals] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, frame: told.append(signal.Signals(n))) for number in numbers]
    try:
        yield told
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
