"""The Mamba language model: embedding, a stack of blocks, a last norm, and a head that shares the embedding's weights.

Shapes: B batch, L length, M model width, V padded vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.mixin import ESIMixin
from mamba_ssm.esi.module import ESI
from mamba_ssm.models import checkpoint, planned_steps
from mamba_ssm.models import states as states_file
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.modules.block import ROWS_OF_A_STEP, Block, add_norm, is_hooked
from mamba_ssm.modules.int8_linear import Int8Linear
from mamba_ssm.modules.mamba_simple import Mamba, MambaState, sequence_index
from mamba_ssm.ops.layer_norm import RMSNorm
from mamba_ssm.ops.linear import linear
from mamba_ssm.utils.generation import GenerationMixin, InferenceParams
from mamba_ssm.utils.hf import push_folder

if TYPE_CHECKING:
    import os


class CausalLMOutput(NamedTuple):
    """logits (B, L, V); with a question the windows that were found and injected; on request a state per layer."""

    logits: Tensor
    hits: Any = None
    states: Sequence[MambaState] | None = None


# Tokens of a batch that go through the layers together where no gradient is wanted: enough for products and a GPU to be
# as fast as they get, and few enough that the memory of a long text does not grow with it.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 131072}
INT8 = ("in_proj", "out_proj")  # what to_int8 rounds in a mixer: nearly all of its weights


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: Sequence[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """One block of the stack. Raises ValueError for attention, MLP or Mamba-2, which this package does not have."""
    MambaConfig(
        d_model=d_model,
        d_intermediate=d_intermediate,
        ssm_cfg=ssm_cfg or {},
        attn_layer_idx=list(attn_layer_idx or []),
        attn_cfg=attn_cfg or {},
    ).validate()
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    options = {k: v for k, v in (ssm_cfg or {}).items() if k != "layer"}
    block = Block(
        d_model,
        partial(Mamba, **options, layer_idx=layer_idx, **factory),
        norm_cls=partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **factory),
        fused_add_norm=fused_add_norm,
        residual_in_fp32=residual_in_fp32,
    )
    block.layer_idx = layer_idx
    return block


@torch.no_grad()
def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Initialise as GPT-2 (Radford et al. 2019, section 2.3): what feeds the residual is scaled by 1/sqrt(layers)."""
    if isinstance(module, nn.Linear):
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    out_proj = getattr(module, "out_proj", None)
    if rescale_prenorm_residual and isinstance(out_proj, nn.Linear):
        nn.init.kaiming_uniform_(out_proj.weight, a=math.sqrt(5))
        out_proj.weight /= math.sqrt(n_residuals_per_layer * n_layer)


class MixerModel(nn.Module):
    """Token ids (B, L) -> hidden states (B, L, d_model) after the last norm."""

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int,
        vocab_size: int,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: Sequence[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **factory)
        self.layers = nn.ModuleList(
            create_block(
                d_model,
                d_intermediate,
                ssm_cfg=ssm_cfg,
                attn_layer_idx=attn_layer_idx,
                attn_cfg=attn_cfg,
                norm_epsilon=norm_epsilon,
                rms_norm=rms_norm,
                residual_in_fp32=residual_in_fp32,
                fused_add_norm=fused_add_norm,
                layer_idx=index,
                **factory,
            )
            for index in range(n_layer)
        )
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **factory)
        self.apply(partial(_init_weights, n_layer=n_layer, **(initializer_cfg or {})))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, MambaState]:
        """An empty state per layer, for InferenceParams.key_value_memory_dict."""
        return {
            index: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)  # type: ignore[operator]
            for index, layer in enumerate(self.layers)
        }

    def forward(
        self,
        input_ids: Tensor,
        inference_params: InferenceParams | None = None,
        *,
        initial_states: Sequence[MambaState] | None = None,
        return_states: bool = False,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> Tensor | tuple[Tensor, Sequence[MambaState]]:
        """input_ids (B, L) -> (B, L, d_model), and with ``return_states`` the state of each layer after the last token.

        ``num_last_tokens``: only so many positions come back, if it is not 0. ``initial_states``, a state per layer,
        continues another text, with gradients. Mamba.forward describes ``attention_mask``, ``seq_idx``, ``cu_seqlens``
        and ``context``, which go to every layer.
        """
        extra = (initial_states, *mixer_kwargs.values())
        if not return_states and all(value is None for value in extra) and not torch.compiler.is_compiling():
            span = max(1, TOKENS_AT_ONCE.get(input_ids.device.type, input_ids.numel()) // max(1, input_ids.shape[0]))
            if input_ids.shape[1] > span and not torch.is_grad_enabled():
                return self._in_parts(input_ids, span, inference_params, num_last_tokens)
        new_states: list[MambaState] | None = [] if return_states else None
        hidden_states, residual = self.forward_layers(
            self.embedding(input_ids),
            inference_params=inference_params,
            states=initial_states,
            new_states=new_states,
            **mixer_kwargs,
        )
        hidden_states = self.final_norm(hidden_states, residual, num_last_tokens)
        return hidden_states if new_states is None else (hidden_states, new_states)

    def _in_parts(self, input_ids: Tensor, span: int, params: InferenceParams | None, num_last_tokens: int) -> Tensor:
        """`forward` of ``span`` tokens a row after the other: what is in between needs memory for these alone."""
        before = 0 if params is None else params.seqlen_offset
        if params is None:
            params = InferenceParams(input_ids.shape[1], input_ids.shape[0])
        kept: list[Tensor] = []
        try:
            for part in input_ids.split(span, dim=1):
                hidden_states, residual = self.forward_layers(self.embedding(part), inference_params=params)
                kept.append(self.final_norm(hidden_states, residual, num_last_tokens))
                if num_last_tokens:
                    kept = [torch.cat(kept, dim=1)[:, -num_last_tokens:]]
                params.seqlen_offset += part.shape[1]
        finally:
            params.seqlen_offset = before  # the caller counts
        return torch.cat(kept, dim=1)

    def forward_layers(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        inference_params: InferenceParams | None = None,
        states: Sequence[MambaState] | None = None,
        new_states: list[MambaState] | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run layers start..stop-1 on hidden_states and residual (B, L, d_model); the same two come back.

        ``states``: a state per layer of the range to start from, with gradients; ``new_states``: a list that the
        states after the last token are appended to. A caller that caches uses ``inference_params`` instead.
        """
        seq_idx = sequence_index(hidden_states, seq_idx, cu_seqlens)
        if seq_idx is not None:
            mixer_kwargs["seq_idx"] = seq_idx
        if inference_params is not None and states is None and new_states is None:
            at_once = planned_steps.step(
                self.layers, start, stop, hidden_states, residual, inference_params, mixer_kwargs
            )
            if at_once is not None:
                return at_once
        layers = self.layers[start:stop]
        if states is not None and len(states) != len(layers):
            raise ValueError(f"there are {len(states)} states to start from and {len(layers)} layers: give one a layer")
        if new_states is not None:
            mixer_kwargs["return_state"] = True
        for index, layer in enumerate(layers):
            if states is not None:
                mixer_kwargs["initial_state"] = states[index]
            hidden_states, residual, *after = layer(
                hidden_states, residual, inference_params=inference_params, **mixer_kwargs
            )
            if new_states is not None:
                new_states += after
        return hidden_states, residual

    def final_norm(self, hidden_states: Tensor, residual: Tensor | None, num_last_tokens: int = 0) -> Tensor:
        """The last addition and norm, of the last positions alone if that is not 0: what the head reads."""
        last = slice(-num_last_tokens, None)
        hidden_states, residual = hidden_states[:, last], None if residual is None else residual[:, last]
        fused, in_fp32 = self.fused_add_norm, self.residual_in_fp32
        return add_norm(self.norm_f, hidden_states, residual, fused=fused, residual_in_fp32=in_fp32)[0]


class MambaLMHeadModel(nn.Module, GenerationMixin, ESIMixin):
    """A Mamba language model with the original's parameter names, so that its checkpoints load."""

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.checkpoint: str | None = None  # the name or folder that it was loaded from
        self.adapter: str | None = None  # the folder that its ESI was loaded from, on top of that
        self.backbone = MixerModel(
            d_model=config.d_model,
            n_layer=config.n_layer,
            d_intermediate=config.d_intermediate,
            vocab_size=config.padded_vocab_size,
            ssm_cfg=config.ssm_cfg,
            attn_layer_idx=config.attn_layer_idx,
            attn_cfg=config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            device=device,
            dtype=dtype,
        )
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False, device=device, dtype=dtype)
        self.esi = self.new_esi(device, dtype)
        self.tie_weights()

    def new_esi(self, device: torch.device | str | None, dtype: torch.dtype | None) -> ESI | None:
        """Untrained parameters of search and injection, if the config asks for them."""
        config = self.config
        if config.esi is None:
            return None
        return ESI(config.d_model, config.padded_vocab_size, ESIConfig.from_dict(config.esi)).to(device, dtype)

    def tie_weights(self) -> None:
        """Let the head use the embedding's weights, where the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, MambaState]:
        """An empty state per layer, for InferenceParams.key_value_memory_dict."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        question_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        num_last_tokens: int = 0,
        *,
        initial_states: Sequence[MambaState] | None = None,
        return_states: bool = False,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """input_ids (B, L) -> logits (B, L, V), or of the last num_last_tokens positions if that is not 0.

        ``question_ids`` (B, m) asks for embedding search and injection. ``position_ids`` is accepted for callers that
        treat every model as a Transformer: a recurrence needs none. With ``inference_params`` the input continues what
        was read before, at any split; ``initial_states`` and ``return_states`` do that with explicit values, a state
        per layer, with gradients. ``attention_mask`` (B, L), false at padding on either side, and ``seq_idx`` (B, L) or
        ``cu_seqlens`` (S + 1,), for several sequences in a row, go to every layer: see Mamba.forward. So does
        ``context``, of `mamba_ssm.ops.context_parallel`, where input_ids are one device's part of a text.
        """
        hits = None
        if question_ids is not None:
            packed = any(mixer_kwargs.get(name) is not None for name in ("seq_idx", "cu_seqlens", "context"))
            if packed or initial_states is not None or return_states:
                raise ValueError(
                    "question_ids search one text a row, and remember it in inference_params: "
                    "pass no states, seq_idx, cu_seqlens or context with them"
                )
            stream = self.stream(question_ids, inference_params)
            runs = stream.advance(input_ids)
            hits = stream.hits
            if self.esi is not None:
                mixer_kwargs["inference_params"] = inference_params
                return CausalLMOutput(self.forward_injected(input_ids, runs, num_last_tokens, **mixer_kwargs), hits)
        made = self.backbone(
            input_ids,
            inference_params,
            initial_states=initial_states,
            return_states=return_states,
            num_last_tokens=num_last_tokens,
            **mixer_kwargs,
        )
        hidden_states, states = made if return_states else (made, None)
        return CausalLMOutput(self._logits(hidden_states), hits, states)

    def step(self, input_ids: Tensor, inference_params: InferenceParams) -> Tensor:
        """One more token for each row of a cache: input_ids (B, 1) -> logits (B, V), without gradients.

        As forward() does it, but on a CPU a row of the result is the same to the last bit whatever B is, from 2 on.
        """
        rows = input_ids.shape[0]
        together = ROWS_OF_A_STEP.get(input_ids.device.type, rows)  # so that the fused step takes them
        hidden_states = []
        first = inference_params.batch_size_offset
        try:
            # In even parts: one row by itself would be computed in another order.
            for part in input_ids.tensor_split(-(-rows // together)):
                hidden_states.append(self.backbone(part, inference_params))
                inference_params.batch_size_offset += len(part)
        finally:
            inference_params.batch_size_offset = first
        return self._logits(torch.cat(hidden_states), by_rows=True)[:, -1]

    def _logits(self, hidden_states: Tensor, by_rows: bool = False) -> Tensor:
        """(B, L, d_model) -> (B, L, V). by_rows: in a way that does not depend on their number, where there is one."""
        head: Any = self.lm_head
        rows = hidden_states.numel() // hidden_states.shape[-1]
        here = hidden_states.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        plain = type(head) in (nn.Linear, Int8Linear) and not is_hooked(head)
        # For many rows, PyTorch's product is faster.
        wanted = rows == 1 or by_rows
        if here and plain and wanted and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            logits = linear(hidden_states.flatten(0, 1), head.weight, getattr(head, "scale", None))
            return logits.unflatten(0, hidden_states.shape[:2])
        return head(hidden_states)

    def to_int8(self) -> MambaLMHeadModel:
        """Round the large matrices of blocks and head to int8, with a scale a row, in place; return the model.

        For decoding on a CPU, which reads all weights for a token. The embedding, the small matrices and ESI stay as
        they are. Such a model can neither be trained nor saved.
        """
        blocks: list[Any] = list(self.backbone.layers)
        for owner, name in [(block.mixer, name) for block in blocks for name in INT8] + [(self, "lm_head")]:
            if not isinstance(linear := getattr(owner, name), Int8Linear):
                setattr(owner, name, Int8Linear(linear))
        return self

    def save_states(self, states: Sequence[MambaState], path: str | os.PathLike[str]) -> None:
        """Write a state per layer, as ``return_states`` gives them, to a safetensors file; never half a one.

        Raises CheckpointError where they are not this model's.
        """
        states_file.save(self, states, path)

    def load_states(self, path: str | os.PathLike[str]) -> list[MambaState]:
        """The states that ``save_states`` wrote, on this model's device: for ``initial_states``, or for a cache.

        Raises CheckpointError where the file is damaged, or comes from a model of another config or dtype.
        """
        return states_file.load(self, path)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        esi: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """Load a checkpoint by its name on the hub ("state-spaces/mamba-130m") or from a local folder.

        Reads model.safetensors or pytorch_model.bin, also in shards, and transformers' layout ("-hf" names). Parameters
        get ``dtype``, by default PyTorch's default, fp32. ``esi`` is a folder that save_esi wrote for this checkpoint.
        The model is in evaluation mode, for ESI's reader has dropout: call train() to train it. Raises CheckpointError
        that says what is wrong.
        """
        return checkpoint.load(cls, pretrained_model_name, device=device, dtype=dtype, esi=esi, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors; nothing half-written is ever seen under those names."""
        checkpoint.save(self, self.config.to_dict(), save_directory)

    def save_esi(self, folder: str | os.PathLike[str]) -> None:
        """Write ESI's parameters alone, for ``from_pretrained(CHECKPOINT, esi=folder)``; never half of them.

        The rest of the model must be as it was loaded: what is written is refused on top of other weights. Raises
        CheckpointError where there is no ESI, or the parameters are not in fp32.
        """
        checkpoint.save_esi(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload model",
        revision: str | None = None,
    ) -> str:
        """Upload what save_pretrained writes to the model ``repo_id`` of the hub, made where there is none.

        ``private``: of a model that is made; by default as the account has it. ``token``: by default the one of
        `hf auth login` or HF_TOKEN. ``revision``: a branch that exists, by default main. Returns the commit's address.
        Raises CheckpointError where the hub refuses it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(Path(folder), repo_id, private, token, commit_message, revision)
