"""Draw the main tables into docs/assets, from the results of the scripts in evals/ and benchmarks/.

    python evals/plots.py [--out docs/assets]

Needs matplotlib: pip install "mamba-esi[plots]".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter, StrMethodFormatter
from mechanisms.plots import STYLE, save

BENCHMARKS = ROOT / "benchmarks" / "results"
WIDTH = 0.8  # of a group of bars
COLOURS = {"here": "C0", "original": "0.6", "transformers": "0.75", "llama.cpp": "0.5"}
COLOURS |= {"here, recall@8": "C0", "BM25, recall@8": "0.6"}


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def bars(axes: Any, groups: Sequence[str], series: dict[str, list[float | None]], errors: Any = None) -> None:
    """A bar for each number, side by side in each group; None is left out. ``errors``: (below, above) by series."""
    width = WIDTH / len(series)
    for number, (name, values) in enumerate(series.items()):
        shown = [i for i, value in enumerate(values) if value is not None]
        at = [i + (number - (len(series) - 1) / 2) * width for i in shown]
        spread = [[side[i] for i in shown] for side in errors[name]] if errors else None
        axes.bar(
            at, [values[i] for i in shown], width * 0.95, yerr=spread, label=name, capsize=2, color=COLOURS.get(name)
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series))


def shares(axes: Any, groups: Sequence[str], series: dict[str, list[dict[str, Any]]]) -> None:
    """Proportions with their 95% intervals."""
    errors = {
        name: (
            [figure["value"] - figure["interval_95"][0] for figure in figures],
            [max(figure["interval_95"][1] - figure["value"], 0.0) for figure in figures],  # of 1, it is rounded below
        )
        for name, figures in series.items()
    }
    bars(axes, groups, {name: [figure["value"] for figure in figures] for name, figures in series.items()}, errors)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def squad(path: Path) -> None:
    books = load(RESULTS / "squad.json")["books"]
    groups = [f"{name}\n{book['tokens_of_a_book']:,.0f} tokens" for name, book in books.items()]
    figure, (found, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
    rows = list(books.values())
    shares(
        found,
        groups,
        {
            "here, recall@8": [book["recall"]["@8"] for book in rows],
            "BM25, recall@8": [book["bm25_recall"]["@8"] for book in rows],
        },
    )
    shares(right, groups, {"exact match": [b["exact_match"] for b in rows], "F1": [b["f1"] for b in rows]})
    save(figure, path)


def textbooks(path: Path) -> None:
    books = load(RESULTS / "textbooks.json")["books"]
    figure, axes = plt.subplots(figsize=(6.8, 3.2))
    groups = [f"{name.replace('_', ' ')}\n{book['questions']} questions" for name, book in books.items()]
    series = {
        "here, recall@8": [book["recall"]["@8"] for book in books.values()],
        "BM25, recall@8": [book["bm25_recall"]["@8"] for book in books.values()],
    }
    shares(axes, groups, series)
    save(figure, path)


def recall(path: Path) -> None:
    rows = load(RESULTS / "recall.json")["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    by = {(row["task"], row["length"]): row["accuracy"] for row in rows}
    figure, axes = plt.subplots(figsize=(8.4, 3.2))
    shares(
        axes,
        [task.replace("_", "\n") for task in tasks],
        {f"{length:,} tokens": [by[task, length] for task in tasks] for length in lengths},
    )
    axes.set_ylabel("answers right")
    save(figure, path)


def memory(path: Path) -> None:
    runs = load(RESULTS / "flat_memory.json")["runs"]
    tokens = [run["tokens"] for run in runs]
    figure, (peak, speed) = plt.subplots(1, 2, figsize=(8.4, 2.8), layout="constrained")
    peak.plot(tokens, [run["peak_bytes"] / 2**20 for run in runs], marker="o")
    peak.set(ylabel="peak memory, MiB")
    speed.plot(tokens, [run["tokens_per_second"] for run in runs], marker="o")
    speed.set(ylabel="tokens a second")
    for axes in (peak, speed):
        axes.set(xscale="log", xlabel="tokens of the book")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def selective_scan(path: Path) -> None:
    rows = load(BENCHMARKS / "selective_scan_h100.json")["rows"]
    rows = [row for row in rows if (row["dtype"], row["layout"]) == ("bfloat16", "channel-last") and row["original_ms"]]
    figure, all_axes = plt.subplots(1, 2, figsize=(10.4, 3.2))
    for axes, direction in zip(all_axes, ("forward", "backward"), strict=True):
        shown = sorted((row for row in rows if row["pass"] == direction), key=lambda row: row["ms"])
        groups = ["{} × {}\n× {:,}".format(*row["shape"]) for row in shown]
        bars(
            axes,
            groups,
            {"original": [row["original_ms"] for row in shown], "here": [row["ms"] for row in shown]},
        )
        axes.set(yscale="log", ylabel=f"{direction}, ms", xlabel="batch × channels × tokens")
        axes.tick_params(axis="x", labelsize=7)
    save(figure, path)


def decode(path: Path) -> None:
    rows = [row for row in load(BENCHMARKS / "decode_h100.json")["steps"] if row["original_ms"]]
    figure, axes = plt.subplots(figsize=(6.8, 3.2))
    original = [1000 * row["batch"] / row["original_ms"] for row in rows]
    bars(
        axes,
        [f"{row['model']}\nbatch {row['batch']}" for row in rows],
        {"original": original, "here": [row["tokens_per_second"] for row in rows]},
    )
    axes.set(yscale="log", ylabel="tokens a second")
    save(figure, path)


def pretraining(path: Path) -> None:
    """The loss of a run of `train lm` and its held-out perplexity. What was computed again after a kill is shown so."""
    curve = load(RESULTS / "pretraining.json")["curve"]
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    axes.plot([row["step"] for row in curve], [row["loss"] for row in curve], linewidth=0.6, label="loss, training")
    held_out = [(row["step"], row["held_out_loss"]) for row in curve if "held_out_loss" in row]
    axes.plot(*zip(*held_out, strict=True), marker="o", markersize=3, label="loss, held out")
    perplexity = axes.secondary_yaxis("right", functions=(np.exp, lambda values: np.log(np.maximum(values, 1e-9))))
    perplexity.set_ylabel("perplexity")
    perplexity.set_yticks([4, 8, 13, 20, 40, 80])
    axes.set_ylim(1.2, 5)
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token")
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


def cpu(path: Path) -> None:
    rows = [row for row in load(BENCHMARKS / "cpu.json")["rows"] if "tokens" in row]
    figure, axes = plt.subplots(figsize=(6.8, 3.2))

    def speeds(name: str) -> list[float | None]:
        """Tokens a second; of several runs of a name (llama.cpp in bf16 and fp16) the fastest."""
        found = [[ms for run, ms in row["ms"].items() if run.split()[0] == name] for row in rows]
        return [1000 * row["tokens"] / min(times) if times else None for row, times in zip(rows, found, strict=True)]

    groups = [f"{row['part']}\n{row['dtype']}" for row in rows]
    bars(
        axes, groups, {"transformers": speeds("transformers"), "llama.cpp": speeds("llama.cpp"), "here": speeds("ours")}
    )
    axes.set(yscale="log", ylabel="tokens a second")
    save(figure, path)


PICTURES = (squad, textbooks, recall, memory, pretraining, selective_scan, decode, cpu)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    arguments = parser.parse_args()
    plt.switch_backend("svg")
    plt.rcParams.update(STYLE | {"svg.hashsalt": "plots"})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        picture(arguments.out / f"{picture.__name__}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
