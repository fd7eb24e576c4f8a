"""A residual block around a mixer: add, normalise, mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mamba_ssm.ops import backend
from mamba_ssm.ops.block_step import block_step
from mamba_ssm.ops.layer_norm import RMSNorm, layer_norm_fn

if TYPE_CHECKING:
    from mamba_ssm.utils.generation import InferenceParams


# For many more rows than these, PyTorch's products in bf16 are faster on a CPU.
ROWS_OF_A_STEP = {"cpu": 16}


def continues_by_one(
    hidden_states: Tensor, params: InferenceParams, mixer_kwargs: dict[str, Any], backends: tuple[str, ...]
) -> bool:
    """Whether hidden_states (B, 1, M) continue a text, for one of these back-ends' `block_step`, with nothing else."""
    device, dtype = hidden_states.device, hidden_states.dtype
    return (
        hidden_states.shape[1] == 1
        and hidden_states.shape[0] <= ROWS_OF_A_STEP.get(device.type, hidden_states.shape[0])
        and params.seqlen_offset > 0
        and all(value is None or value is False for value in mixer_kwargs.values())
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and backend.choose("block_step", device, dtype).backend in backends
        and not torch.is_autocast_enabled(device.type)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward()."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def add_norm(
    norm: nn.Module, hidden_states: Tensor, residual: Tensor | None, *, fused: bool, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """hidden_states + residual (both (B, L, M)), normalised, and the sum itself: the next residual."""
    if fused and isinstance(norm, nn.LayerNorm | RMSNorm):
        return layer_norm_fn(
            hidden_states,
            norm.weight,
            norm.bias if isinstance(norm, nn.LayerNorm) else None,
            residual=residual,
            eps=norm.eps,
            prenorm=True,
            residual_in_fp32=residual_in_fp32,
            is_rms_norm=isinstance(norm, RMSNorm),
        )
    residual = hidden_states if residual is None else hidden_states + residual
    normed = norm(residual.to(norm.weight.dtype) if isinstance(norm.weight, Tensor) else residual)
    return normed, residual.float() if residual_in_fp32 else residual


class Block(nn.Module):
    """(hidden, residual) -> (mixer(norm(hidden + residual)), hidden + residual).

    The addition comes first, so that it and the norm are one operation (``fused_add_norm``). With ``mlp_cls`` (anything
    but ``nn.Identity``) a second norm and that module follow, as in the original. ``mixer_cls``, ``mlp_cls`` and
    ``norm_cls`` are called with ``dim``.
    """

    layer_idx: int | None = None

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module] | None = None,
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp: nn.Module | None = None
        if mlp_cls is not None and mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise ValueError(f"fused_add_norm knows LayerNorm and RMSNorm, not {type(self.norm).__name__}")

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """hidden_states, residual (B, L, dim) -> (hidden_states, residual) [, state with ``return_state``]."""
        if inference_params is not None and self._is_one_op(hidden_states, inference_params, mixer_kwargs):
            return self._step(hidden_states, residual, inference_params)
        how = {"fused": self.fused_add_norm, "residual_in_fp32": self.residual_in_fp32}
        hidden_states, residual = add_norm(self.norm, hidden_states, residual, **how)
        mixed = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        hidden_states, *state = mixed if isinstance(mixed, tuple) else (mixed,)
        if self.mlp is not None:
            hidden_states, residual = add_norm(self.norm2, hidden_states, residual, **how)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual, *state

    def _is_one_op(self, hidden_states: Tensor, params: InferenceParams, mixer_kwargs: dict[str, Any]) -> bool:
        """Whether this call is one token that continues a cache, on a back-end that fuses the whole block."""
        return (
            continues_by_one(hidden_states, params, mixer_kwargs, ("cpu", "cuda"))
            and self.is_fusable(nn.Linear)
            and hidden_states.dtype == self.norm.weight.dtype
        )

    def is_fusable(self, *linears: type[nn.Module]) -> bool:
        """Whether the block is nothing but what `block_step` computes, its projections being of these very classes.

        A class derived from them, an adapter around one and a hook all compute something else, or look on.
        """
        from mamba_ssm.modules.mamba_simple import Mamba

        mixer = self.mixer
        return (
            self.fused_add_norm
            and self.mlp is None
            and type(mixer) is Mamba
            and all(type(m) in linears for m in (mixer.in_proj, mixer.out_proj))
            and type(mixer.x_proj) is nn.Linear
            and not any(map(is_hooked, self.modules_of_a_step()))
        )

    def modules_of_a_step(self) -> tuple[nn.Module, ...]:
        """What a fused step stands in for, but for the block itself and modules that are never called."""
        mixer: Any = self.mixer
        return self.norm, mixer, mixer.in_proj, mixer.x_proj, mixer.out_proj

    def _step(self, hidden_states: Tensor, residual: Tensor | None, params: InferenceParams) -> tuple[Tensor, Tensor]:
        """forward() for one token, (B, 1, dim)."""
        mixer: Any = self.mixer
        norm: Any = self.norm
        conv_state, ssm_state = mixer._cache_for(params, hidden_states.shape[0])
        out, residual = block_step(
            hidden_states.squeeze(1),
            None if residual is None else residual.squeeze(1),
            conv_state,
            ssm_state,
            norm.weight,
            norm.bias,
            mixer.in_proj.weight,
            mixer.in_proj.bias,
            mixer.conv1d.weight.squeeze(1),
            mixer.conv1d.bias,
            mixer.x_proj.weight,
            mixer.dt_proj.weight,
            mixer.dt_proj.bias,
            mixer.A_log,
            mixer.D,
            mixer.out_proj.weight,
            mixer.out_proj.bias,
            norm.eps,
            isinstance(norm, RMSNorm),
            self.residual_in_fp32,
        )
        return out.unsqueeze(1), residual.unsqueeze(1)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The mixer's empty cache for batch_size rows."""
        allocate: Any = self.mixer.allocate_inference_cache
        return allocate(batch_size, max_seqlen, dtype=dtype, **kwargs)
