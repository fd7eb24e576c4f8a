"""Text generation with a recurrent cache: read the prompt once, then a token at a time.

Shapes: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from mamba_ssm.utils.cuda_graph import DecodingCGCache, update_graph_cache
from mamba_ssm.utils.sampling import (
    modify_logit_for_repetition_penalty,
    modify_logits_for_min_p_filtering,
    modify_logits_for_top_k_filtering,
    modify_logits_for_top_p_filtering,
    sample,
)

__all__ = [
    "DecodingCGCache",
    "GenerationMixin",
    "GenerationOutput",
    "InferenceParams",
    "decode",
    "modify_logit_for_repetition_penalty",
    "modify_logits_for_min_p_filtering",
    "modify_logits_for_top_k_filtering",
    "modify_logits_for_top_p_filtering",
    "sample",
    "update_graph_cache",
]


@dataclass
class InferenceParams:
    """What a model remembers between calls, and how much it has read: seqlen_offset tokens.

    The caller adds to ``seqlen_offset`` after each call. Layer i's state is ``key_value_memory_dict[i]``.
    ``planned_steps`` is the model's own: see models/planned_steps.py.
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None
    dtypes: dict[Any, torch.dtype] = field(default_factory=dict)  # of the weights when the text began, by layer
    planned_steps: dict[Any, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # see models/planned_steps.py

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Start another text. The tables stay: the next call at offset 0 overwrites them."""
        self.max_seqlen = max_seqlen
        self.max_batch_size = max_batch_size
        self.seqlen_offset = 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()

    def check_unmoved(self, layer: Any, weight: Tensor, device: torch.device) -> None:
        """Raise ValueError where a layer's weight left the dtype in which the text began, or its states' device."""
        if self.seqlen_offset == 0:
            self.dtypes[layer] = weight.dtype
        dtype = self.dtypes.setdefault(layer, weight.dtype)
        if dtype != weight.dtype or device != weight.device:
            raise ValueError(
                f"the text began with a model in {dtype} on {device}, which is now in {weight.dtype} on "
                f"{weight.device}: start it again, with new InferenceParams"
            )


@dataclass
class GenerationOutput:
    """sequences (B, L), prompt included; scores, a (B, V) of raw logits per new token; texts, a string per row.

    ``texts`` needs a tokenizer: what was generated, cut before the first stop string or end-of-sequence token.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    texts: list[str] | None = None


class Streamer(Protocol):
    """As in transformers: put() gets the prompt (B, L), then each step's tokens (B,); end() comes last."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


class Tokenizer(Protocol):
    """Whatever turns ids into text: transformers' tokenizers and those of ``tokenizers`` do."""

    def decode(self, ids: list[int]) -> str: ...


@torch.no_grad()  # not inference_mode: what comes out may go into training
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Streamer | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    stop_strings: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    question_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> GenerationOutput:
    """Continue input_ids (B, L) to max_length tokens, prompt included, or until every row has ended.

    Args:
        top_k: 1 takes the likeliest token, 0 does not limit. top_p, min_p: 0 does not limit. See ``sample``.
        eos_token_id: ends a row; it then repeats this token until every row has ended.
        teacher_outputs: (B, >= max_length) tokens to take instead of the sampled ones, to score a given text.
        vocab_size: ids from here on, the padding of the vocabulary, are never sampled nor in scores.
        cg: replay steps, and prompts of up to 2,048 tokens whose shape came before, as CUDA graphs: much faster on
            small batches; kept on the model for the next call.
        seed, generator: make sampling repeat. Either, not both.
        stop_strings: end a row whose new text holds one of them; needs ``tokenizer``. ``texts`` is cut before it.
        question_ids: (B, m), for a model with embedding search and injection.
        attention_mask: (B, L), false at the padding of shorter prompts, which must be on their left.
    """
    batch, prompt_length = input_ids.shape
    if prompt_length == 0:
        raise ValueError("the prompt is empty: give at least one token, such as the end-of-sequence token")
    if max_length <= prompt_length:
        raise ValueError(f"max_length {max_length} counts the prompt, which has {prompt_length} tokens: raise it")
    if stop_strings and tokenizer is None:
        raise ValueError("stop_strings need a tokenizer: pass tokenizer=")
    if attention_mask is not None and not attention_mask[:, -1].all():
        raise ValueError("attention_mask marks the end of a prompt as padding: pad prompts on the left")
    if seed is not None:
        if generator is not None:
            raise ValueError("seed and generator both fix the sampling: pass one")
        generator = torch.Generator(input_ids.device).manual_seed(seed)
    forward, params = _stepper(model, input_ids, max_length, cg, question_ids, attention_mask)
    rows = _Rows(batch, eos_token_id, [stop_strings] if isinstance(stop_strings, str) else stop_strings, tokenizer)
    sequences, scores, tokens = input_ids, [], input_ids
    started = _now(input_ids.device) if enable_timing else 0.0
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while sequences.shape[1] < max_length and not rows.all_done():
        logits = forward(tokens)[:, -1, :vocab_size]
        params.seqlen_offset += tokens.shape[1]
        if output_scores:
            scores.append(logits.clone() if cg else logits)  # a graph overwrites them at the next step
        if teacher_outputs is not None and teacher_outputs.shape[1] > sequences.shape[1]:
            chosen = teacher_outputs[:, sequences.shape[1]]
        else:
            if repetition_penalty != 1.0:
                logits = modify_logit_for_repetition_penalty(logits.clone(), sequences, repetition_penalty)
            chosen = sample(logits, top_k, top_p, min_p, temperature, generator=generator)
        chosen = rows.take(chosen)
        tokens = chosen.unsqueeze(1)
        sequences = torch.cat([sequences, tokens], dim=1)
        if streamer is not None:
            streamer.put(chosen.cpu())
    if streamer is not None:
        streamer.end()
    if enable_timing:
        print(f"Prompt processing + decoding time: {(_now(input_ids.device) - started) * 1000:.0f}ms")
    return GenerationOutput(sequences, tuple(scores) if output_scores else None, rows.texts())


class _Rows:
    """Which rows have ended, and what each has said."""

    def __init__(self, batch: int, eos: int | None, stops: Sequence[str], tokenizer: Tokenizer | None) -> None:
        self.eos, self.stops, self.tokenizer = eos, [s for s in stops if s], tokenizer
        self.done = [False] * batch
        self.ids: list[list[int]] = [[] for _ in range(batch)]
        fill = eos if eos is not None else getattr(tokenizer, "eos_token_id", None)
        self.fill = fill if isinstance(fill, int) else 0
        # Tokens that can hold a stop string: each has at least a byte, but for a few special ones.
        self.tail = max((len(s.encode()) for s in self.stops), default=0) + 4

    def all_done(self) -> bool:
        return all(self.done)

    def take(self, chosen: Tensor) -> Tensor:
        """Note the tokens (B,), and return them with those of ended rows replaced."""
        if self.eos is None and self.tokenizer is None:
            return chosen  # no row can end: do not wait for the device
        tokens = [self.fill if done else token for done, token in zip(self.done, chosen.tolist(), strict=True)]
        for row, token in enumerate(tokens):
            if self.done[row]:
                continue
            if token == self.eos:
                self.done[row] = True
                continue
            self.ids[row].append(token)
            if self.stops and self.tokenizer is not None:
                text = self.tokenizer.decode(self.ids[row][-self.tail :])
                self.done[row] = any(stop in text for stop in self.stops)
        return torch.tensor(tokens, dtype=chosen.dtype, device=chosen.device)

    def texts(self) -> list[str] | None:
        if self.tokenizer is None:
            return None
        texts = [self.tokenizer.decode(ids) for ids in self.ids]
        return [text[: min((at for s in self.stops if (at := text.find(s)) >= 0), default=None)] for text in texts]


def _stepper(
    model: Any,
    input_ids: Tensor,
    max_length: int,
    cg: bool,
    question_ids: Tensor | None,
    attention_mask: Tensor | None,
) -> tuple[Callable[[Tensor], Tensor], InferenceParams]:
    """A function from tokens (B, L) to their last logits (B, 1, V), and the cache that it moves on."""
    batch = input_ids.shape[0]
    graph = None
    if cg and input_ids.is_cuda and question_ids is None:
        model._decoding_cache = graph = update_graph_cache(
            model, getattr(model, "_decoding_cache", None), batch, input_ids.shape[1], max_length
        )
        params = graph.inference_params
        params.reset(max_length, params.max_batch_size)  # the graphs hold states of that size
    else:
        if cg:
            print("generate: cg=True needs a CUDA device and no question_ids; decoding without graphs", file=sys.stderr)
        params = InferenceParams(max_seqlen=max_length, max_batch_size=batch)
    extra = {} if question_ids is None else {"question_ids": question_ids}
    prompt_extra = {} if attention_mask is None else {"attention_mask": attention_mask}

    def forward(tokens: Tensor) -> Tensor:
        if graph is not None and params.seqlen_offset > 0:
            return graph.run(tokens)
        if graph is not None and attention_mask is None:
            logits = graph.run_prompt(model, tokens)
            if logits is not None:
                return logits
        more = extra | prompt_extra if params.seqlen_offset == 0 else extra
        return model(tokens, inference_params=params, num_last_tokens=1, **more).logits

    return forward, params


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class GenerationMixin:
    """Gives a model ``generate``. The model is called as model(ids, inference_params=..., num_last_tokens=1)."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define allocate_inference_cache")

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> GenerationOutput | Tensor:
        """Sequences (B, L), or with return_dict_in_generate a GenerationOutput. Arguments: see ``decode``."""
        output = decode(
            input_ids,
            self,
            max_length,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            temperature=temperature,
            output_scores=output_scores,
            **kwargs,
        )
        return output if return_dict_in_generate else output.sequences
