"""Continuous batching: texts that are decoded together, a token each a step, and come and go between steps.

Scheduling by iterations is Orca's (Yu et al. 2022, section 3.1). A newcomer's prompt is read by itself, in parts,
between the steps of the others; its state then takes a row of the batch. A Mamba's state has a fixed size, so a row is
all that a text needs, however long it gets. Rows in use are kept side by side: the last one moves where one leaves.

Shapes: B rows in use, L length, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mamba_ssm.models.prompts import ENDLESS, PROMPT_TOKENS, Prompt
from mamba_ssm.utils.generation import InferenceParams, update_graph_cache
from mamba_ssm.utils.sampling import draw

LEAST = 1e-5  # a temperature below is taken for 0, for logits that are divided by it overflow; and top_p is not lower

UNIFORMS = 64  # random numbers that are made in one call; how many changes none of them


@dataclass(frozen=True)
class Sampling:
    """How a text goes on.

    ``temperature`` 0 takes the likeliest token. ``end``: a token that ends the text. ``top_logprobs``: report for each
    token its log-probability, and those of so many of the likeliest; None for neither.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    end: int | None = None
    top_logprobs: int | None = None


class Token(NamedTuple):
    """A token of a text. ``finish`` says why it is the last one: "stop", being the end itself, or "length"."""

    id: int
    finish: Literal["stop", "length"] | None
    logprob: float | None
    likeliest: list[tuple[int, float]]


class Continuation:
    """A text to go on from: the prompt's tokens, at least one, and how."""

    def __init__(self, prompt: list[int], sampling: Sampling) -> None:
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token, such as the end-of-sequence token")
        self.prompt, self.sampling = prompt, sampling
        self.read = 0  # tokens of the prompt
        self.said = 0
        self.last = 0
        self.greedy = sampling.temperature < LEAST
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.uniforms: list[float] = []  # some at a time, for a call each would take as long as all else of a token

    def how_to_draw(self) -> tuple[float, float, float]:
        """The temperature, top_p, and the next random number in [0, 1)."""
        if not self.uniforms:
            self.uniforms = torch.rand(UNIFORMS, generator=self.generator).tolist()[::-1]
        return self.sampling.temperature, max(self.sampling.top_p, LEAST), self.uniforms.pop()

    def note(self, token: int, logprob: float | None, likeliest: list[tuple[int, float]]) -> Token:
        """Count a token that was chosen."""
        self.said, self.last = self.said + 1, token
        finish: Literal["stop", "length"] | None = None
        if token == self.sampling.end:
            finish = "stop"
        elif self.said >= self.sampling.max_tokens:
            finish = "length"
        return Token(token, finish, logprob, likeliest)


class Batch:
    """Up to ``slots`` texts of one model, each by its own settings, as if it were alone in it. For one thread."""

    @torch.inference_mode()
    def __init__(self, model: Any, slots: int) -> None:
        self.model, self.slots = model, slots
        self.device = model.lm_head.weight.device
        self.rows: list[Continuation] = []  # row i of the states is that of rows[i]
        self.joining: deque[Continuation] = deque()  # their prompts are not read yet
        self.graph, pool = None, None
        if self.device.type == "cuda":
            self.graph = update_graph_cache(model, None, slots, 1, ENDLESS)
            self.params, pool = self.graph.inference_params, self.graph.pool
        else:
            self.params = InferenceParams(ENDLESS, slots, seqlen_offset=1)
            self.params.key_value_memory_dict = dict(model.allocate_inference_cache(slots, ENDLESS))
        self.prompt = Prompt(model, pool)  # of the first that joins

    def __len__(self) -> int:
        return len(self.rows) + len(self.joining)

    def add(self, text: Continuation) -> None:
        """Let a text join. Raises ValueError where there is no slot for it."""
        if len(self) >= self.slots:
            raise ValueError(f"all {self.slots} slots are taken: wait until a text leaves")
        self.joining.append(text)

    def remove(self, text: Continuation) -> None:
        """Free the slot of a text."""
        if text in self.joining:
            self.joining.remove(text)
            return
        row, last = self.rows.index(text), len(self.rows) - 1
        if row != last:
            self._set_state(row, self._states(), last)
            self.rows[row] = self.rows[last]
        self.rows.pop()

    @torch.inference_mode()
    def step(self) -> list[tuple[Continuation, Token]]:
        """A token for each text whose prompt is read. Those that end with it have left."""
        made = self._decode() if self.rows else []
        made += self._read_prompts()
        for text, token in made:
            if token.finish is not None:
                self.remove(text)
        return made

    def _decode(self) -> list[tuple[Continuation, Token]]:
        ids = [[text.last] for text in self.rows]
        if self.graph is None:
            # One row by itself is computed in another order than among others: a free one keeps it company.
            ids += [[0]] * (len(ids) == 1 < self.slots)
            return self._choose(self.rows, self.model.step(torch.tensor(ids, device=self.device), self.params))
        # All slots, always: one graph is enough, and the choice of kernels does not depend on who else is there.
        tokens = torch.tensor(ids + [[0]] * (self.slots - len(ids)))
        return self._choose(self.rows, self.graph.run(tokens)[:, -1])

    def _read_prompts(self) -> list[tuple[Continuation, Token]]:
        """Read parts of the prompts of those who join, the first one's first."""
        made: list[tuple[Continuation, Token]] = []
        budget = PROMPT_TOKENS
        while self.joining and budget > 0:
            text = self.joining[0]
            # Cut at the same places whoever else is there, for the sake of the last bit.
            part = text.prompt[text.read : text.read + PROMPT_TOKENS]
            logits = self.prompt.read(part, text.read)
            text.read += len(part)
            budget -= len(part)
            if text.read < len(text.prompt):
                continue
            self.joining.popleft()
            self._set_state(len(self.rows), self.prompt.states, 0)
            self.rows.append(text)
            made += self._choose([text], logits)
        return made

    def _states(self) -> dict[int, tuple[Tensor, Tensor]]:
        return self.params.key_value_memory_dict

    @torch.inference_mode()
    def _set_state(self, row: int, states: dict[int, tuple[Tensor, Tensor]], source: int) -> None:
        """Let a row have the state that row ``source`` of states has."""
        kept, new = [], []  # copied in one call: a call for each would take longer than a step
        for layer, parts in self._states().items():
            kept += [part[row] for part in parts]
            new += [part[source] for part in states[layer]]
        torch._foreach_copy_(kept, new)

    def _choose(self, rows: list[Continuation], logits: Tensor) -> list[tuple[Continuation, Token]]:
        """Tokens for rows from logits (B, V), of which the first ones are theirs."""
        logits = logits[:, : self.model.config.vocab_size].float()
        # max is three times as fast as argmax on a CPU.
        tokens = self._draw(rows, logits, logits.max(-1).indices).tolist()
        made = []
        for i, text in enumerate(rows):
            top = text.sampling.top_logprobs
            logprob, likeliest = None, []
            if top is not None:
                logprobs = logits[i].log_softmax(-1)
                logprob = float(logprobs[tokens[i]])
                values, ids = logprobs.topk(top)
                likeliest = list(zip(ids.tolist(), values.tolist(), strict=True))
            made.append((text, text.note(tokens[i], logprob, likeliest)))
        return made

    def _draw(self, rows: list[Continuation], logits: Tensor, likeliest: Tensor) -> Tensor:
        """Tokens (B,): the likeliest ones of the rows that are greedy, and drawn ones of the others."""
        warm = [i for i, text in enumerate(rows) if not text.greedy]
        if not warm:
            return likeliest
        settings = torch.tensor([[1.0, 1.0, -1.0]]).repeat(len(logits), 1)
        settings[warm] = torch.tensor([rows[i].how_to_draw() for i in warm])
        # All on a GPU, as in _decode; and nothing is asked of it here, for each answer would be waited for.
        which = warm if self.graph is None else slice(None)
        settings = settings[which]
        temperature, _, uniform = settings.to(self.device).unbind(1)
        drawn = draw(logits[which], temperature, settings[:, 1], uniform)
        likeliest[which] = torch.where(uniform < 0, likeliest[which], drawn)
        return likeliest
