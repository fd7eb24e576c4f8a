"""The Mamba mixer: a gated, causal, selective state space layer (arXiv:2312.00752, section 3.4, figure 3).

Shapes: B batch, L length, M model width, D inner channels (expand * M), N state, W width of the convolution.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_ssm.modules.block import Block
from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from mamba_ssm.ops.selective_state_update import selective_state_update

if TYPE_CHECKING:
    from mamba_ssm.ops.context_parallel import ContextParallel
    from mamba_ssm.utils.generation import InferenceParams

__all__ = ["Block", "Mamba", "MambaState"]

MambaState = tuple[Tensor, Tensor]
"""What a layer remembers: the last W inputs of its convolution (B, D, W), and its SSM state (B, D, N) in fp32."""


def sequence_index(hidden_states: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """The sequence that each token of hidden_states (B, L, M) belongs to, (B, L); None where nothing is packed.

    Tokens after the end that cu_seqlens (S + 1,) names are a sequence of their own.
    """
    if seq_idx is not None:
        if cu_seqlens is not None:
            raise ValueError("seq_idx and cu_seqlens both say where sequences begin: pass one")
        if seq_idx.shape != (tokens := hidden_states.shape[:2]):
            raise ValueError(f"seq_idx {tuple(seq_idx.shape)} must name a sequence for each token, {tuple(tokens)}")
        return seq_idx.to(hidden_states.device)
    if cu_seqlens is None:
        return None
    batch, length = hidden_states.shape[:2]
    if batch != 1:
        raise ValueError(f"cu_seqlens packs sequences in one row, and there are {batch}: pass seq_idx")
    ends = cu_seqlens[1:].to(hidden_states.device)
    at = torch.arange(length, device=ends.device, dtype=ends.dtype)
    return torch.searchsorted(ends.contiguous(), at, right=True, out_int32=True).unsqueeze(0)


def _without_padding(seq_idx: Tensor, padding: Tensor) -> Tensor:
    """seq_idx (B, L), where padding (B, L) is of the sequence before it, or of the first one: it begins no new one."""
    length = seq_idx.shape[1]
    first = _in_front(padding).clamp(max=length - 1)
    at = torch.arange(length, device=padding.device).masked_fill(padding, 0).cummax(-1).values.maximum(first)
    return seq_idx.gather(1, at)


def _behind_padding(before: Tensor, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """The columns (B, D, W) read before x (B, D, L), moved over the padding (B, 1, L) in front of each row's text.

    Returned as the first W columns and the L others: the convolution then finds them right before the text. A row
    without text stays as it is.
    """
    width, length = before.shape[-1], x.shape[-1]
    front = _in_front(padding)
    front = front.masked_fill(front == length, 0)
    at = torch.arange(width + length, device=x.device)
    at = torch.where(at < front, at + width, torch.where(at < front + width, at - front, at))
    columns = torch.cat([before, x], dim=-1).gather(2, at.expand(-1, x.shape[1], -1))
    return columns[..., :width], columns[..., width:]


def _in_front(padding: Tensor) -> Tensor:
    """How much padding (..., L) each row has in front: (..., 1)."""
    return padding.long().cumprod(-1).sum(-1, keepdim=True)


class Mamba(nn.Module):
    """A sequence-to-sequence layer, (B, L, d_model) in and out, that costs O(L) time and remembers O(1).

    ``use_fast_path`` is accepted for the original's sake: there is one path here, and it is the fast one.
    Names of parameters and their initialisation are the original's, so published checkpoints load.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise ValueError(f'dt_init must be "random" or "constant", not {dt_init!r}')
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path = use_fast_path
        self.layer_idx = layer_idx

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, device=device, dtype=dtype)
        # A convolution module only for the names and initialisation of its parameters; the op below does the work.
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias, device=device, dtype=dtype
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, device=device, dtype=dtype)
        self._init_dt(dt_init, dt_scale, dt_min, dt_max, dt_init_floor)
        # S4D-real: A_n = -n (arXiv:2312.00752, section 3.6). Always in fp32, for exp() amplifies its error.
        steps = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(steps.log().to(device).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, device=device))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, device=device, dtype=dtype)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _init_dt(self, scheme: str, scale: float, low: float, high: float, floor: float) -> None:
        """Start softplus(dt bias) log-uniform in [low, high] (arXiv:2312.00752, section 3.6)."""
        spread = scale * self.dt_rank**-0.5
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        bias._no_reinit = True  # type: ignore[attr-defined]
        if weight.is_meta:  # which has no values, and where PyTorch imports its compiler to compute none
            return
        if scheme == "constant":
            weight.fill_(spread)
        else:
            weight.uniform_(-spread, spread)
        dt = torch.empty_like(bias, dtype=torch.float32).uniform_(math.log(low), math.log(high)).exp().clamp(min=floor)
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(
        self,
        hidden_states: Tensor,
        inference_params: InferenceParams | None = None,
        *,
        initial_state: MambaState | None = None,
        return_state: bool = False,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        context: ContextParallel | None = None,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Mix hidden_states (B, L, d_model) along L.

        ``inference_params``: the layer's entry in the cache is read (unless seqlen_offset is 0, the start of a text)
        and overwritten, so a call on any number of tokens continues the ones before it. No gradient flows through it.
        ``initial_state`` and ``return_state`` do the same with explicit values, with gradients.
        ``attention_mask`` (B, L), false where a row is padded before its text or after it: padding changes neither the
        outputs at other positions nor the state. Outputs at padding mean nothing.
        ``seq_idx`` (B, L), the sequence that each token belongs to, or for a single row ``cu_seqlens`` (S + 1,), where
        its S sequences begin and the last one ends: no token sees another sequence than its own. A state to start from
        belongs to the first token's sequence, the state that comes back is that of the last token's.
        ``context``: hidden_states are this rank's part of a longer text, whose parts before it lie on other ranks; then
        packed sequences are the context's, and of the options above only ``return_state`` goes with it.
        """
        if context is not None:
            others = (inference_params, initial_state, attention_mask, seq_idx, cu_seqlens)
            if any(other is not None for other in others) or hidden_states.shape[:2] != context.shape:
                raise ValueError(
                    f"context is of a part {tuple(context.shape)} of a text and says what was before it: pass hidden "
                    "states of that shape, no other state, no padding, and seq_idx to the context itself"
                )
            seq_idx = context.seq_idx
        seq_idx = sequence_index(hidden_states, seq_idx, cu_seqlens)
        cache = None
        if inference_params is not None:
            if initial_state is not None:
                raise ValueError("initial_state and inference_params both give a state to start from: pass one")
            cache = self._cache_for(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                one = hidden_states.shape[1] == 1 and not return_state and attention_mask is None and seq_idx is None
                if one and not torch.is_grad_enabled():
                    return self.step(hidden_states, *cache)[0]
                initial_state = (cache[0].clone(), cache[1].clone())  # a backward pass needs them as they are now
        elif initial_state is not None:
            self._check_state(initial_state, hidden_states.shape[0])
        want_state = return_state or cache is not None
        out, state = self._mix(hidden_states, initial_state, want_state, attention_mask, seq_idx, context)
        if cache is not None and state is not None:
            for kept, new in zip(cache, state, strict=True):
                kept.copy_(new.detach())  # in place: a captured CUDA graph reads these very addresses
        return (out, state) if return_state and state is not None else out

    def _mix(
        self,
        hidden: Tensor,
        initial: MambaState | None,
        want_state: bool,
        attention_mask: Tensor | None,
        seq_idx: Tensor | None,
        context: ContextParallel | None,
    ) -> tuple[Tensor, MambaState | None]:
        """(B, L, M) -> (B, L, M) and the state after the last token. Channel-last: transposes below are views."""
        # _mix_whole takes the weights of projections; one that was replaced or adapted must be called.
        plain = type(self.x_proj) is nn.Linear and type(self.out_proj) is nn.Linear
        whole = initial is None and attention_mask is None and seq_idx is None and context is None
        if plain and whole and not want_state:
            return self._mix_whole(hidden), None
        conv_in, ssm_in = initial if initial is not None else (None, None)
        x, z = self.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)  # (B, D, L) each
        padding = None if attention_mask is None else ~attention_mask.bool().unsqueeze(1)  # (B, 1, L)
        if padding is not None:
            x = x.masked_fill(padding, 0)  # as before the first token
            seq_idx = None if seq_idx is None else _without_padding(seq_idx, padding.squeeze(1))
            if conv_in is not None:
                conv_in, x = _behind_padding(conv_in.to(x.dtype), x, padding)
        if context is not None:
            conv_in = context.columns_before(x, self.d_conv)
        conv_out = self._last_inputs(x, conv_in, padding, seq_idx) if want_state else None
        x = causal_conv1d_fn(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            seq_idx,
            initial_states=None if conv_in is None else conv_in[..., 1:].to(x.dtype),
            activation="silu",
        )
        dt, B, C = self._select(x.transpose(1, 2))
        dt = dt.transpose(1, 2)
        if padding is not None:
            dt = dt.masked_fill(padding, -1e4)  # softplus makes it 0, a step that leaves the state alone
        A, bias = -torch.exp(self.A_log.float()), self.dt_proj.bias.float()
        B, C = B.transpose(1, 2), C.transpose(1, 2)
        if context is not None:
            ssm_in = context.state_before(x, dt, A, B, C, bias)
        y = selective_scan_fn(
            x,
            dt,
            A,
            B,
            C,
            self.D.float(),
            z=z,
            delta_bias=bias,
            delta_softplus=True,
            return_last_state=want_state,
            initial_state=ssm_in,
            seq_idx=seq_idx,
        )
        if conv_out is not None:
            y, ssm_out = y
            return self.out_proj(y.transpose(1, 2)), (conv_out, ssm_out)
        return self.out_proj(y.transpose(1, 2)), None

    def _mix_whole(self, hidden: Tensor) -> Tensor:
        """`_mix` of a text by itself, where nobody asks for the state."""
        return mamba_inner_fn(
            self.in_proj(hidden).transpose(1, 2),
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            self.out_proj.bias,
            -torch.exp(self.A_log.float()),
            D=self.D.float(),
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
        )

    def _last_inputs(self, x: Tensor, before: Tensor | None, padding: Tensor | None, seq_idx: Tensor | None) -> Tensor:
        """The last W columns (B, D, W) of what the convolution has read, up to x (B, D, L): zeros at the start."""
        width = self.d_conv
        before = x.new_zeros(*x.shape[:2], width) if before is None else before.to(x.dtype)
        if padding is None:
            last = torch.cat([before, x[..., -width:]], dim=-1)[..., -width:]
        else:
            ends = torch.arange(x.shape[-1] + 1, device=x.device).masked_fill(F.pad(padding, (1, 0)), 0)
            end = ends.amax(dim=-1, keepdim=True)  # (B, 1, 1), after each row's last token
            columns = end + torch.arange(width, device=x.device)
            last = torch.cat([before, x], dim=-1).gather(2, columns.expand(-1, self.d_inner, -1))
        if seq_idx is None or x.shape[-1] == 0:
            return last
        ids = torch.cat([seq_idx[:, :1].expand(-1, width), seq_idx], dim=-1)
        ids = ids[:, -width:] if padding is None else ids.gather(1, columns.squeeze(1))
        return last.masked_fill((ids != ids[:, -1:]).unsqueeze(1), 0)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on x (..., D): dt (..., D) without its bias, B and C (..., N) (algorithm 2)."""
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C  # the op adds the bias, in fp32

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token: hidden_states (B, 1, M), conv_state (B, D, W), ssm_state (B, D, N).

        Returns the output (B, 1, M) and both states, which are also updated in place.
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"step() takes one token a row, not {hidden_states.shape[1]}: call forward() for more")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)  # (B, D) each
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        dt, B, C = self._select(x)
        y = selective_state_update(
            ssm_state,
            x,
            dt,
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.D.float(),
            z=z,
            dt_bias=self.dt_proj.bias.float(),
            dt_softplus=True,
        )
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: object
    ) -> MambaState:
        """A zero state for batch_size rows; max_seqlen does not matter to it. The SSM state is kept in fp32 always."""
        device = self.x_proj.weight.device
        conv_dtype = self.conv1d.weight.dtype if dtype is None else dtype
        conv_state = torch.zeros(batch_size, self.d_inner, self.d_conv, device=device, dtype=conv_dtype)
        return conv_state, torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=torch.float32)

    def _check_state(self, state: MambaState, rows: int) -> None:
        """Kernels trust their shapes."""
        wanted = [(rows, self.d_inner, width) for width in (self.d_conv, self.d_state)]
        if (given := [tuple(part.shape) for part in state]) != wanted:
            raise ValueError(f"initial_state has shapes {given}, and this layer and batch need {wanted}")

    def _cache_for(self, params: InferenceParams, rows: int) -> MambaState:
        """The rows of the cache that this batch owns, allocated on first use."""
        if self.layer_idx is None:
            raise ValueError("Mamba needs layer_idx to find its state in inference_params: pass it when you build it")
        caches = params.key_value_memory_dict
        start, stop = params.batch_size_offset, params.batch_size_offset + rows
        if self.layer_idx not in caches:
            if params.seqlen_offset > 0:
                raise ValueError(f"no state for layer {self.layer_idx} at seqlen_offset {params.seqlen_offset}")
            caches[self.layer_idx] = self.allocate_inference_cache(max(stop, params.max_batch_size), params.max_seqlen)
        conv_state, ssm_state = caches[self.layer_idx]
        if conv_state.shape[0] < stop:
            raise ValueError(f"the cache has {conv_state.shape[0]} rows and the batch needs {stop}: allocate more")
        params.check_unmoved(self.layer_idx, self.x_proj.weight, conv_state.device)
        return conv_state[start:stop], ssm_state[start:stop]
