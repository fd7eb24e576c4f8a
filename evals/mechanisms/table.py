"""Print what was compared as Markdown, from the results of run.py: the section of docs/esi.md.

python evals/mechanisms/table.py [evals/results/mechanisms.jsonl]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mechanisms import results
from mechanisms.results import Share, by_k, facts, share
from mechanisms.run import OUT, RATES, SEEDS, Record, read_records
from mechanisms.texts import TESTS

ABLATED_IN = ("needles, 4k", "needles, 64k", "articles, 6k")
BY_K = "needles, 64k"

CLAIMED = (
    ("RAMba: Mamba-2, hierarchical sparse attention", "2504.16795", "4K", "passkey 100% at 64M; its index grows"),
    ("hierarchical sparse attention, follow-up", "2510.17196", "4K", "RULER and BABILong to 32M"),
    ("SPScanner: marks sentences for another model", "2504.03101", "–", "beats embeddings' retrieval on 41 QA sets"),
    ("OPRM: chunks decoded apart, no training", "2505.07793", "–", "+14% to +51% on LongBench, recurrent models"),
    ("state passing", "2507.02782", "2K, and 500 steps", "length 128K"),
    ("Stuffed Mamba: a 370M Mamba-2", "2410.07145", "–", "passkey nearly perfect at 256K"),
)
"""System, number on arXiv, length of its training, what its authors report."""
RECIPE = """\
Small models, trained alike: the same borrowed token table, {steps} steps of {texts} texts of 4,032 tokens with
{per_text} questions each, the best of the learning rates {rates} by loss on texts kept for development, {seeds}
seeds; on {gpu}. Half of the training's texts are real text with single-key and multi-key needles, half are crops of
SQuAD articles. The tests have other names, templates and books. A text holds the needles of eight questions, whatever
its length; articles are the first 5,952 tokens of development articles.
Questions: {numbers}.

The language model answers in all rows but the one that points, and an answer is right if greedy decoding gives it to
its end. In brackets the 95% interval over questions, and the least and the best seed; loss is the cross-entropy of a
token of the answers in the texts for development. All of it is what so short a training gives: a mechanism that learns
more slowly may get further in a longer one. The scripts: `evals/mechanisms/`; raw results:
`evals/results/mechanisms.jsonl`.
"""
ORIGINAL = (
    "The code that this project began from has no published figure. It adds the softmax-weighted embeddings of five\n"
    "tokens to every input embedding; its scores start so small that the softmax is uniform, and its keys see no\n"
    "context."
)


def cell(found: Share | None) -> str:
    if found is None:
        return "–"
    low, high = found.interval
    seeds = f"; {min(found.by_seed):.2f} to {max(found.by_seed):.2f}" if len(found.by_seed) > 1 else ""
    return f"{found.value:.3f} [{low:.2f}, {high:.2f}{seeds}]"


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def head(cells: Sequence[str]) -> list[str]:
    return [line(cells), "|" + "---|" * len(cells)]


def mechanisms(records: Sequence[Record]) -> Iterator[str]:
    yield from head(["mechanism", "parameters", "rate", "loss", *TESTS])
    for row, name in results.MECHANISMS.items():
        about = facts(records, row)
        if about:
            shares = [cell(share(records, row, test)) for test in TESTS]
            loss = "" if "/" in row else f"{about['loss']:.2f}"  # of the arm as it was trained
            yield line([name, f"{about['parameters']:,}", f"{about['rate']:g}", loss, *shares])


def in_use(records: Sequence[Record], rows: Mapping[str, str], name: str) -> Iterator[str]:
    """Answers right, and where the windows hold the answer."""
    yield from head([name, *(f"{test}: {what}" for test in ABLATED_IN for what in ("found", "right"))])
    for row, label in rows.items():
        cells = [cell(share(records, row, test, part)) for test in ABLATED_IN for part in ("found", "right")]
        yield line([label, *cells])


def windows_read(records: Sequence[Record]) -> Iterator[str]:
    yield from head(["windows read", "found", "right"])
    right = dict(by_k(records, BY_K, "right"))
    for k, found in by_k(records, BY_K, "found"):
        yield line([str(k), cell(found), cell(right[k])])


def ablations(records: Sequence[Record]) -> Iterator[str]:
    yield from head(["changed", *ABLATED_IN])
    first = [r for r in records if r["seed"] == 0]
    for row, label in {"esi": "nothing, the same seed", **results.CHANGES}.items():
        yield line([label, *(cell(share(first, row, test)) for test in ABLATED_IN)])


def section(records: Sequence[Record]) -> Iterator[str]:
    run = records[0]
    recipe, gpu = run["recipe"], run["provenance"]["hardware"]["gpu"] or "a CPU"
    numbers = [f"{len(run['rows'][''][test]['right'])} ({test})" for test in TESTS]
    yield "## What was compared\n"
    yield RECIPE.format(
        **recipe, rates=", ".join(f"{rate:g}" for rate in RATES), gpu=gpu, seeds=SEEDS, numbers=", ".join(numbers)
    )
    yield from mechanisms(records)
    yield (
        "\nThe hybrids keep keys and values of the whole text, so their memory grows with it; the others' does not.\n"
        "\n![Accuracy by length](assets/mechanisms_by_length.svg)\n"
        "\nThe same weights of ESI with other windows, and whether these hold the answer (found):\n"
    )
    yield from in_use(records, results.WINDOWS, "windows")
    yield "\nWith keys of other precision:\n"
    yield from in_use(records, results.PRECISIONS, "keys")
    yield f"\nWith fewer or more windows ({BY_K}):\n"
    yield from windows_read(records)
    yield "\n![By windows read](assets/mechanisms_by_k.svg)\n"
    yield "One thing changed at a time, trained anew with one seed at ESI's rate:\n"
    yield from ablations(records)
    yield "\n![Ablations](assets/mechanisms_ablations.svg)\n"
    yield "Claimed elsewhere, by the authors and on other tasks, so not to be set beside the rows above:\n"
    yield from head(["system", "trained on", "result"])
    for system, paper, length, result in CLAIMED:
        yield line([f"{system} ([{paper}](https://arxiv.org/abs/{paper}))", length, result])
    yield f"\n{ORIGINAL}"


def main() -> int:
    print("\n".join(section(read_records(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
