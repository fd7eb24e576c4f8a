"""MambaLMHeadModel under transformers' AutoModelForCausalLM: its generate(), its Trainer, its files.

Shapes: B batch, L length, V padded vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams

__all__ = ["MambaSSMConfig", "MambaSSMForCausalLM", "register"]


class MambaSSMConfig(transformers.PretrainedConfig):
    """MambaConfig, its names and defaults, as transformers wants a config to be: ``vocab_size`` counts the padding."""

    model_type = "mamba_ssm"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(self, **kwargs: Any) -> None:
        own = {f.name: kwargs.pop(f.name, _default(f)) for f in fields(MambaConfig)}
        own["vocab_size"] = MambaConfig(**own).padded_vocab_size
        super().__init__(**kwargs)
        for name, value in own.items():
            setattr(self, name, value)

    def to_mamba(self) -> MambaConfig:
        """Raises CheckpointError for what MambaConfig.from_dict refuses."""
        try:
            return MambaConfig.from_dict({f.name: getattr(self, f.name) for f in fields(MambaConfig)})
        except ValueError as error:
            raise CheckpointError(f"the config is not a Mamba model's: {error}") from error


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


class MambaSSMForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):
    """A MambaLMHeadModel that transformers can load, generate from, train and save; its keys are the original's."""

    config_class = MambaSSMConfig
    base_model_prefix = "backbone"
    _is_stateful = True
    _keep_in_fp32_modules_strict = ("A_log", "D")
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "backbone.embedding.weight"}

    def __init__(self, config: MambaSSMConfig) -> None:
        super().__init__(config)
        model = MambaLMHeadModel(config.to_mamba())
        self.backbone, self.lm_head, self.esi = model.backbone, model.lm_head, model.esi
        # It computes with the very modules that are registered above; registered itself, it would name them twice.
        object.__setattr__(self, "_model", model)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: MambaLMHeadModel has initialised them."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers does it. Raises CheckpointError where the weights do not fit the config."""
        name = pretrained_model_name_or_path
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
            raise CheckpointError(f"{name} lacks, or holds beyond its config, {', '.join(wrong[:3])}: get it again")
        return (model, info) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = self._model.lm_head = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: InferenceParams | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        question_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, L) -> logits (B, L, V), or of the last logits_to_keep positions if that is not 0.

        attention_mask (B, L), or longer with what was read before in front; false at padding. past_key_values: what an
        earlier call with use_cache returned; input_ids continues it, whatever their number. labels (B, L): shifted in
        here, -100 counts as nothing. question_ids (B, m) asks for embedding search and injection.
        """
        if use_cache and past_key_values is None:
            past_key_values = InferenceParams(max_seqlen=0, max_batch_size=len(input_ids))
        masks = {} if attention_mask is None else {"attention_mask": attention_mask[:, -input_ids.shape[1] :]}
        logits = self._model(
            input_ids, question_ids, inference_params=past_key_values, num_last_tokens=logits_to_keep, **masks
        ).logits
        if past_key_values is not None:
            past_key_values.seqlen_offset += input_ids.shape[1]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the first forward() makes the cache."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: InferenceParams | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        question_ids: Tensor | None = None,
        logits_to_keep: int = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What of the text has not been read yet; the padding of prompts lies before their first token."""
        if past_key_values is not None:
            input_ids, attention_mask = input_ids[:, past_key_values.seqlen_offset :], None
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "question_ids": question_ids,
            "logits_to_keep": logits_to_keep,
        }

    @staticmethod
    def _reorder_cache(past_key_values: InferenceParams, beam_idx: Tensor) -> InferenceParams:
        """The rows (B,) of the cache that a beam search goes on with."""
        states = past_key_values.key_value_memory_dict
        for layer, state in states.items():
            if not isinstance(state, tuple):
                raise ValueError("a beam search has no question: generate with num_beams=1, or without question_ids")
            states[layer] = tuple(part.index_select(0, beam_idx) for part in state)
        return past_key_values


@cache
def register() -> None:
    """Let AutoConfig and AutoModelForCausalLM load folders and names whose config.json is in the original's layout.

    That layout names no ``model_type``, which transformers goes by; from now on, for as long as the process runs, it is
    told one when it reads such a file.
    """
    transformers.AutoConfig.register(MambaSSMConfig.model_type, MambaSSMConfig)
    transformers.AutoModelForCausalLM.register(MambaSSMConfig, MambaSSMForCausalLM)
    read = transformers.PretrainedConfig.get_config_dict.__func__

    def get_config_dict(cls: type[Any], *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, rest = read(cls, *args, **kwargs)
        if "model_type" not in values and values.keys() >= {"d_model", "n_layer", "vocab_size"}:
            values["model_type"] = MambaSSMConfig.model_type
        return values, rest

    transformers.PretrainedConfig.get_config_dict = classmethod(get_config_dict)
