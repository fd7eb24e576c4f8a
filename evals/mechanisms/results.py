"""The runs of run.py as numbers: shares with intervals, by row of the table, test and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mechanisms.arms import ARMS
from mechanisms.measure import KS
from mechanisms.run import Record, best_rate

from mamba_ssm.training.metrics import wilson

MECHANISMS = {
    "plain": "plain Mamba",
    "plain/last_4k": "the same weights, the last 4k alone",
    "hybrid_1": "hybrid, one layer of attention",
    "hybrid_2": "hybrid, two layers of attention",
    "weighted_sum": "weighted sum of hidden states (the original idea, repaired)",
    "state_injection": "state injection",
    "esi": "**ESI**",
}
"""Rows that are trained, 'arm' or 'arm/row', and what the table calls them."""
WINDOWS = {
    "esi/random": "eight at random",
    "esi/bm25": "BM25",
    "esi/minilm": "MiniLM",
    "esi/fusion": "BM25 and MiniLM, fused",
    "esi": "**its own search**",
    "esi/oracle": "its own, the gold window always among them",
}
PRECISIONS = {"esi/fp32": "fp32", "esi": "bf16", "esi/int8": "int8"}
CHANGES = {
    "keys_without_context": "keys: token embeddings without context",
    "keys_of_two_layers": "keys: two layers of context, not one",
    "mean_instead_of_maxsim": "one mean vector, not MaxSim",
    "no_negatives_of_other_texts": "search loss: no negatives from other texts",
    "no_search_loss": "no search loss",
    "no_token_weights": "all tokens of a question weigh the same",
    "windows_of_32": "16 windows of 32 tokens",
    "windows_of_128": "4 windows of 128 tokens",
    "no_injection": "no injection into the state, copying alone",
    "no_copying": "no copying, injection alone",
    "windows_not_read_again": "windows not read again: attention to encoder states",
    "reader_left_to_right": "reader left to right alone",
    "carried_state": "starts from the state after the whole text",
    "span_loss_too": "with a span loss",
    "span_loss_too/span": "with a span loss, the span pointed at is the answer",
}


@dataclass(frozen=True)
class Share:
    """Hits of n questions in all seeds together, and the share of each seed."""

    hits: int
    n: int
    by_seed: tuple[float, ...]

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95%, of the questions of one seed: the seeds answer the same ones."""
        n = self.n / len(self.by_seed)
        return wilson(self.value * n, round(n))


def chosen(records: Sequence[Record], arm: str) -> list[Record]:
    """The arm's runs at its best rate, by seed; none where they were not made."""
    runs = [r for r in records if r["arm"] == arm]
    if arm in ARMS and runs:
        rate = best_rate(records, arm)
        runs = [r for r in runs if r["rate"] == rate]
    return sorted(runs, key=lambda r: r["seed"])


def share(records: Sequence[Record], row: str, test: str, part: str = "right") -> Share | None:
    """Of a row 'arm' or 'arm/row' in a test; None where it was not measured."""
    arm, _, within = row.partition("/")
    bits = [run["rows"].get(within, {}).get(test, {}).get(part) for run in chosen(records, arm)]
    if not bits or None in bits:
        return None
    every = "".join(bits)
    return Share(every.count("1"), len(every), tuple(one.count("1") / len(one) for one in bits))


def by_k(records: Sequence[Record], test: str, part: str) -> Iterator[tuple[int, Share]]:
    """ESI's shares by the number of windows read."""
    for k in KS:
        found = share(records, "esi" if k == 8 else f"esi/k={k}", test, part)
        if found is not None:
            yield k, found


def facts(records: Sequence[Record], row: str) -> dict[str, Any]:
    """Parameters, rate and mean loss in development of a row's arm; nothing where it was not run."""
    runs = chosen(records, row.partition("/")[0])
    if not runs:
        return {}
    loss = sum(run["development_loss"] for run in runs) / len(runs)
    return {"parameters": runs[0]["parameters"], "rate": runs[0]["rate"], "loss": loss}
