"""Draw what was compared into docs/assets, from the results of run.py.

    python evals/mechanisms/plots.py [--results evals/results/mechanisms.jsonl] [--out docs/assets]

Needs matplotlib: pip install "mamba-esi[plots]".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import ROOT
from mechanisms import results
from mechanisms.results import by_k, share
from mechanisms.run import OUT, Record, read_records
from mechanisms.table import ABLATED_IN, BY_K
from mechanisms.texts import TESTS

# No date and no random ids, so that the same results give the same file; letters as text, so that files stay small.
STYLE = {"svg.hashsalt": "mechanisms", "svg.fonttype": "none", "font.size": 9}
NEEDLES = [test for test in TESTS if test.startswith("needles")]


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def plain(name: str) -> str:
    return name.replace("**", "")


def by_length(records: Sequence[Record], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for row, name in results.MECHANISMS.items():
        points = [(TESTS[test], found) for test in NEEDLES if (found := share(records, row, test)) is not None]
        if points:
            lengths, shares = zip(*points, strict=True)
            low, high = zip(*((s.value - s.interval[0], s.interval[1] - s.value) for s in shares), strict=True)
            bold = 2.5 if row == "esi" else 1.2
            values = [s.value for s in shares]
            axes.errorbar(lengths, values, (low, high), label=plain(name), marker="o", linewidth=bold, capsize=2)
    axes.set(xscale="log", xlabel="tokens of the text", ylabel="answers right", ylim=(-0.02, 1.02))
    axes.set_xticks([TESTS[test] for test in NEEDLES], [f"{TESTS[test]:,}" for test in NEEDLES])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, path)


def by_windows(records: Sequence[Record], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(4.8, 3.2))
    for part, name in ("found", "a window holds the answer"), ("right", "answers right"):
        points = list(by_k(records, BY_K, part))
        axes.plot([k for k, _ in points], [found.value for _, found in points], marker="o", label=name)
    axes.set(xscale="log", xlabel=f"windows read ({BY_K})", ylim=(-0.02, 1.02))
    axes.set_xticks([k for k, _ in points], [str(k) for k, _ in points])
    axes.minorticks_off()
    axes.legend(frameon=False)
    save(figure, path)


def ablated(records: Sequence[Record], path: Path) -> None:
    first = [r for r in records if r["seed"] == 0]
    rows = {"esi": "ESI", **results.CHANGES}
    rows = {row: name for row, name in rows.items() if share(first, row, BY_K) is not None}
    figure, all_axes = plt.subplots(1, len(ABLATED_IN), figsize=(9.6, 0.28 * len(rows) + 0.8), sharey=True)
    for axes, test in zip(all_axes, ABLATED_IN, strict=True):
        values = [found.value for row in rows if (found := share(first, row, test)) is not None]
        axes.barh(range(len(rows)), values, color=["C1", *["C0"] * (len(rows) - 1)])
        axes.axvline(values[0], color="C1", linewidth=0.8)
        axes.set(title=test, xlabel="answers right", xlim=(0, 1))
    all_axes[0].set_yticks(range(len(rows)), list(rows.values()))
    all_axes[0].invert_yaxis()
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=OUT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    arguments = parser.parse_args()
    plt.switch_backend("svg")
    plt.rcParams.update(STYLE)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = read_records(arguments.results)
    by_length(records, arguments.out / "mechanisms_by_length.svg")
    by_windows(records, arguments.out / "mechanisms_by_k.svg")
    ablated(records, arguments.out / "mechanisms_ablations.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
