"""One token through all of a model's blocks in one call, on a CPU: where everything lies is found once for a text.

What Python has to do for a block takes a tenth of the time that the block itself takes, so it is done beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mamba_ssm.modules.block import Block, continues_by_one, is_hooked
from mamba_ssm.modules.int8_linear import Int8Linear
from mamba_ssm.ops.layer_norm import RMSNorm

if TYPE_CHECKING:
    from mamba_ssm.ops.cpu.block_step import Steps
    from mamba_ssm.utils.generation import InferenceParams


class PlannedSteps:
    """The fused step of some layers, and all that it was made from: weights, states, and the absence of hooks."""

    def __init__(self, layers: dict[str, Any], all_layers: nn.ModuleList, params: InferenceParams, rows: int) -> None:
        """layers: some of all_layers, by their names there."""
        from mamba_ssm.ops.cpu.block_step import Steps

        first, blocks = next(iter(layers.values())), []
        self.owners: list[tuple[Any, Any, Any]] = []
        self.hooks: list[Any] = []
        for name, layer in layers.items():
            self.owners.append((all_layers._modules, name, layer))
            blocks.append(_tensors(layer, params, rows))
            modules = (layer, *layer.modules_of_a_step())
            self.hooks += [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
            for module in (*modules, layer.mixer.conv1d, layer.mixer.dt_proj):
                for table in (module._parameters, module._buffers, module._modules):
                    self.owners += [(table, key, kept) for key, kept in table.items() if kept is not None]
            index = layer.mixer.layer_idx
            self.owners.append((params.key_value_memory_dict, index, params.key_value_memory_dict[index]))
        tensors = [m for block in blocks for m in block.values() if m is not None]
        self.addresses = [(tensor, tensor.data_ptr()) for tensor in tensors]
        self.steps: Steps = Steps(blocks, first.norm.eps, isinstance(first.norm, RMSNorm), first.residual_in_fp32)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has None here: the addresses are of these very tensors."""
        return type(None), ()

    def still_holds(self) -> bool:
        """Whether nothing of it was replaced, moved, or is looked at by a hook."""
        return (
            all(table.get(name) is kept for table, name, kept in self.owners)
            and all(tensor.data_ptr() == address for tensor, address in self.addresses)
            and not any(self.hooks)
        )


def step(
    layers: nn.ModuleList,
    start: int,
    stop: int | None,
    hidden_states: Tensor,
    residual: Tensor | None,
    params: InferenceParams,
    mixer_kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor] | None:
    """hidden_states, residual (B, 1, M) through layers start..stop-1; None where these must be called one by one."""
    if not continues_by_one(hidden_states, params, mixer_kwargs, ("cpu",)):
        return None
    rows = hidden_states.shape[0]
    key = (start, stop, rows, params.batch_size_offset)
    plan = params.planned_steps.get(key)
    if plan is None or not plan.still_holds():
        chosen: dict[str, Any] = dict(list(layers._modules.items())[start:stop])
        if not _alike(list(chosen.values())):
            return None
        plan = params.planned_steps[key] = PlannedSteps(chosen, layers, params, rows)
    out, stream = plan.steps(hidden_states.squeeze(1), None if residual is None else residual.squeeze(1))
    return out.unsqueeze(1), stream.unsqueeze(1)


def _alike(layers: Sequence[Any]) -> bool:
    """Whether all are blocks that can be fused, of one size and one kind of norm."""
    if not layers or not all(
        type(m) is Block and not is_hooked(m) and m.is_fusable(nn.Linear, Int8Linear) for m in layers
    ):
        return False
    kinds = {
        (m.mixer.d_model, m.mixer.d_inner, m.mixer.d_state, m.mixer.d_conv, m.mixer.dt_rank, type(m.norm), m.norm.eps)
        for m in layers
    }
    return len(kinds) == 1 and len({m.residual_in_fp32 for m in layers}) == 1


def _tensors(layer: Any, params: InferenceParams, rows: int) -> dict[str, Tensor | None]:
    """By the names that `ops.cpu.block_step.TENSORS` gives them."""
    mixer = layer.mixer
    conv_state, ssm_state = mixer._cache_for(params, rows)
    return {
        **{"norm": layer.norm.weight, "norm_bias": layer.norm.bias},
        **{"conv_state": conv_state, "ssm_state": ssm_state},
        **{"in_proj": mixer.in_proj.weight, "in_bias": mixer.in_proj.bias},
        **{"in_scale": getattr(mixer.in_proj, "scale", None), "out_scale": getattr(mixer.out_proj, "scale", None)},
        **{"conv": mixer.conv1d.weight, "conv_bias": mixer.conv1d.bias, "x_proj": mixer.x_proj.weight},
        **{"dt_proj": mixer.dt_proj.weight, "dt_bias": mixer.dt_proj.bias, "A_log": mixer.A_log, "skip": mixer.D},
        **{"out_proj": mixer.out_proj.weight, "out_bias": mixer.out_proj.bias},
    }
