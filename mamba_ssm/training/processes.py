"""The processes of a run: one, or those that torchrun or `accelerate launch` started, on CPUs or GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from mamba_ssm.errors import TrainingError
from mamba_ssm.training.config import LoopConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def processes(config: LoopConfig, blocks: Sequence[str]) -> Iterator[Accelerator]:
    """Join the other processes of the run, if there are any.

    ``blocks``: classes of the modules that FSDP2 gathers one at a time. Raises TrainingError for what cannot be had.
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, InitProcessGroupKwargs

    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    many_gpus = not on_cpu and "LOCAL_RANK" in os.environ  # as launchers have it
    if on_cpu and config.device == "cuda":
        raise TrainingError("device is cuda, and PyTorch finds none here: see `mamba-esi doctor`")
    sharding = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(blocks),
        cpu_ram_efficient_loading=False,
    )
    shards = config.parallel == "fsdp2"
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no",
            log_with=config.tracker,
            project_dir=config.out,
            fsdp_plugin=sharding if shards and many_gpus else None,
            # What the processes tell one another in each step lies on the CPU, and need not wait for a GPU.
            kwargs_handlers=[InitProcessGroupKwargs(backend="cpu:gloo,cuda:nccl")] if many_gpus else [],
        )
        if shards and accelerator.distributed_type == DistributedType.MULTI_CPU:
            # Accelerate shards on GPUs alone; PyTorch does so on CPUs, too.
            accelerator.state.distributed_type = DistributedType.FSDP
            accelerator.state.fsdp_plugin = sharding
        if accelerator.distributed_type == DistributedType.FSDP and not shards:
            raise TrainingError("`accelerate launch` was told to use FSDP: give --parallel fsdp2 instead")
        if config.tracker is not None and not accelerator.log_with:
            raise TrainingError(f"the tracker {config.tracker} is not installed: pip install {config.tracker}")
        yield accelerator
        # FSDP2's device meshes keep gloo's threads alive, which abort the process if they let go a tensor while the
        # interpreter ends. Here they can, for this waits without the lock that they need for it.
        accelerator.wait_for_everyone()
        accelerator.end_training()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
