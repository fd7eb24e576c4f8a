"""How often an arm answers right, and how often its search finds: for the arm as it is, and what changes it in use.

An answer is right if every token of it, and its end, has the largest logit given those before it: exactly then greedy
decoding gives this answer. Shapes: as in arms.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from mechanisms.ablations import Span
from mechanisms.arms import ESI, Arm, Plain, Searching, answer_loss
from mechanisms.speaking import said
from mechanisms.texts import TESTS, Batch, Texts
from torch import Tensor

from mamba_ssm.esi.search import Keys
from mamba_ssm.training.reading import IGNORE

TOKENS = 1 << 18  # of texts in a batch
KS = (1, 2, 4, 8, 16, 32, 64)
LAST = 4032

Outcome = tuple[str, Tensor, Tensor | None]
"""Name of a row of the table, '' for the arm itself; which answers are right (Q,), which were found (Q,)."""


def right(logits: Tensor, batch: Batch) -> Tensor:
    """(Q, S, V) -> (Q,)"""
    targets = said(batch.questions, batch.answers).targets
    return ((logits.argmax(-1) == targets) | (targets == IGNORE)).all(1)


def plain_outcomes(arm: Plain, batch: Batch) -> Iterator[Outcome]:
    yield "", right(arm.logits(batch), batch), None
    arm.seen = LAST
    yield "last_4k", right(arm.logits(batch), batch), None
    arm.seen = 0


def searching_outcomes(arm: Searching, batch: Batch) -> Iterator[Outcome]:
    question, scores = arm.searched(batch)
    windows, best = arm.found(batch, scores)
    logits = arm.answer(batch, arm.read(batch, question, windows, best))
    yield "", right(logits, batch), arm.gold(batch, windows).any(1)


def esi_outcomes(arm: ESI, batch: Batch) -> Iterator[Outcome]:
    """With other windows than its search's best eight, of which it keeps the scores; and with other keys."""
    keys, question = arm.keys(batch), arm.ask(batch)
    own = arm.own(batch, arm.scores(question.query, keys.to(torch.bfloat16)))
    k = arm.config.top_k
    ranked = own.argsort(dim=1, descending=True, stable=True)
    gold = arm.gold(batch, torch.arange(own.shape[1], device=own.device))

    def outcome(name: str, windows: Tensor, own: Tensor = own) -> Outcome:
        memory = arm.read(batch, question, windows, own.gather(1, windows))
        return name, right(arm.answer(batch, memory), batch), gold.gather(1, windows).any(1)

    for n in KS:
        yield outcome("" if n == k else f"k={n}", ranked[:, :n])
    generator = torch.Generator().manual_seed(0)  # on the CPU, so that every device draws the same
    yield outcome("random", torch.rand(own.shape, generator=generator).to(own.device).argsort(1)[:, :k])
    missed = ~gold.gather(1, ranked[:, :k]).any(1)
    oracle = ranked[:, :k].clone()
    oracle[missed, -1] = gold[missed].long().argmax(1)
    yield outcome("oracle", oracle)
    for name, order in batch.rankings.items():
        yield outcome(name, order[:, :k])
    for name, values in ("fp32", keys), ("int8", Keys.of(keys.flatten(0, 1)).values().view_as(keys)):
        other = arm.own(batch, arm.scores(question.query, values.float()))
        yield outcome(name, other.topk(k, 1).indices, other)


def outcomes(arm: Arm, batch: Batch, in_use: bool) -> Iterator[Outcome]:
    if in_use:
        assert isinstance(arm, ESI)
        yield from esi_outcomes(arm, batch)
    elif isinstance(arm, Searching):
        yield from searching_outcomes(arm, batch)
    else:
        assert isinstance(arm, Plain)
        yield from plain_outcomes(arm, batch)
    if isinstance(arm, Span):
        yield "span", arm.points_right(batch), None


@torch.no_grad()
def measure(
    arm: Arm, sets: dict[str, Texts], half: torch.autocast, in_use: bool = False
) -> dict[str, dict[str, dict[str, str]]]:
    """Row -> test -> {"right": a 0 or 1 for each question, "found": the same for the search, if there is one}.

    ``in_use``: of an arm of ESI, also the rows that change something in use.
    """
    arm.eval()
    rows: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for name in TESTS:
        done: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        for batch in sets[name].batches(TOKENS):
            with half:
                for row, is_right, found in outcomes(arm, batch, in_use):
                    done[row]["right"].append(is_right)
                    if found is not None:
                        done[row]["found"].append(found)
        for row, parts in done.items():
            rows[row][name] = {part: bits(torch.cat(values)) for part, values in parts.items()}
    return dict(rows)


def bits(truths: Tensor) -> str:
    return "".join(str(int(truth)) for truth in truths.tolist())


@torch.no_grad()
def development_loss(arm: Arm, texts: Texts, half: torch.autocast) -> float:
    """Mean cross-entropy of the answers, by which the learning rate is chosen."""
    arm.eval()
    with half:
        losses = [answer_loss(arm.logits(batch), batch).item() for batch in texts.batches(TOKENS)]
    return sum(losses) / len(losses)
