"""lm-evaluation-harness on Mamba checkpoints: its own command, with the models "mamba" and "mamba_esi" added.

    python evals/lm_harness_eval.py --model mamba --model_args pretrained=state-spaces/mamba-130m \\
        --tasks lambada_openai,hellaswag,piqa,arc_easy,arc_challenge,winogrande --device cuda --batch_size 64

All arguments are the harness's: --model hf and its other models run too. Needs pip install "mamba-esi[lm-eval]".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import get_dtype
from torch import Tensor
from tqdm import tqdm

from mamba_ssm.book.engine import DEFAULT_MODEL, MAX_QUESTION
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import END_OF_TEXT, FILE
from mamba_ssm.utils.hf import load_config_hf

PUBLISHED_TOKENIZER = "EleutherAI/gpt-neox-20b"
_CUE = re.compile(r"\s*\w*:?\s*")  # an empty line, or one like "Answer:"


@register_model("mamba")
class MambaLM(HFLM):
    """A checkpoint's folder or its name on the hub, through MambaLMHeadModel.from_pretrained.

    The harness's arguments hold. By default ``max_length`` is 2048, and ``dtype`` float16 on a GPU, float32 elsewhere.
    ``tokenizer`` is that of the folder; without one, that of the published checkpoints.
    """

    def __init__(
        self,
        pretrained: str = "state-spaces/mamba-130m",
        tokenizer: str | transformers.PreTrainedTokenizerFast | None = None,
        max_length: int = 2048,
        **kwargs: Any,
    ) -> None:
        tokenizer = tokenizer or folder_tokenizer(pretrained) or PUBLISHED_TOKENIZER
        super().__init__(pretrained, backend="causal", tokenizer=tokenizer, max_length=max_length, **kwargs)

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        self._config = load_config_hf(pretrained)

    def _create_model(self, pretrained: str, dtype: str | torch.dtype = "auto", **kwargs: Any) -> None:
        if dtype == "auto":
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._model = MambaLMHeadModel.from_pretrained(pretrained, device=self.device, dtype=get_dtype(dtype))

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: Tensor | None = None,
        do_sample: bool | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """context (B, L) -> (B, L + new): each row ends at a stop string. Greedy if no temperature is set."""
        if do_sample is False or temperature == 0.0:
            top_k, temperature = 1, 1.0
        return self.model.generate(
            context,
            max_length,
            top_k=top_k,
            temperature=temperature,
            attention_mask=attention_mask,
            eos_token_id=self.eot_token_id,
            stop_strings=stop,
            tokenizer=self.tokenizer,
            vocab_size=self.model.config.vocab_size,
            **kwargs,
        )


@register_model("mamba_esi")
class MambaESILM(MambaLM):
    """The same with embedding search and injection: the task's question searches the context before each position.

    By default the model in this package. The choices of one question are one batch. ``loglikelihood_rolling`` has no
    question, and runs without.
    """

    _question_ids: Tensor | None = None  # (1, m), of the requests that are being answered

    def __init__(self, pretrained: str = str(DEFAULT_MODEL), **kwargs: Any) -> None:
        super().__init__(pretrained, **kwargs)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._by_question(super().loglikelihood, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._by_question(super().generate_until, requests, disable_tqdm)

    def _by_question(self, answer: Callable[..., list[Any]], requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        """The answers to the requests, in their order. A call has one question and one context, so that nothing is
        padded on the left: the search would read the padding as text."""
        groups: dict[tuple[str, str], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((question_of(request), request.args[0]), []).append(index)
        answers: list[Any] = [None] * len(requests)
        try:
            for (question, _), indices in tqdm(groups.items(), desc="Asking questions", disable=disable_tqdm):
                ids = self.tok_encode(question, add_special_tokens=False) or [self.eot_token_id]
                self._question_ids = torch.tensor([ids[-MAX_QUESTION:]], device=self.device)
                found = answer([requests[index] for index in indices], disable_tqdm=True)
                for index, value in zip(indices, found, strict=True):
                    answers[index] = value
        finally:
            self._question_ids = None
        return answers

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._question_ids is None:
            return super()._model_call(inps, *args, **kwargs)
        with torch.no_grad():
            return self.model(inps, question_ids=self._question_ids.expand(len(inps), -1)).logits

    def _model_generate(self, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert self._question_ids is not None
        return super()._model_generate(
            context, *args, question_ids=self._question_ids.expand(len(context), -1), **kwargs
        )


def question_of(request: Instance) -> str:
    """The document's "question", or the last line of the context that is more than a cue such as "Answer:"."""
    if isinstance(question := request.doc.get("question"), str):
        return question
    context = request.args[0]
    return next((line.strip() for line in reversed(context.splitlines()) if not _CUE.fullmatch(line)), context)


def folder_tokenizer(pretrained: str) -> str | transformers.PreTrainedTokenizerFast | None:
    """What the harness takes as the tokenizer of a checkpoint's folder; None where the folder has none."""
    folder = Path(pretrained).expanduser()
    if (folder / "tokenizer_config.json").is_file():
        return str(folder)
    if not (folder / FILE).is_file():
        return None
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / FILE))
    if END_OF_TEXT not in tokenizer.get_vocab():
        raise CheckpointError(
            f"{folder / FILE} has no token {END_OF_TEXT}: pass another in --model_args, as tokenizer=NAME"
        )
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TEXT
    return tokenizer


if __name__ == "__main__":
    cli_evaluate()
