"""Multi-query associative recall (Zoology, arXiv 2312.04927): a two-layer Mamba, and the same with ESI.

    python evals/recall/mqar.py [--device cuda] [--jobs 6] [--steps 500] [--plain-steps 4000] [--rows 192]
        [--rates 0.001 ...] [--seeds 1 2 3] [--d-model 64]

Both arms are trained from scratch on the same rows, and answer with the argmax of their logits over the whole
vocabulary at the query's place. With ESI each query is a question of one token about what stands before it in its row:
the windows that end before it are searched, pairs and filler alike, and the best are injected at its place and may be
copied there.

A batch holds rows of one training size, chosen by its number of rows. Each learning rate is tried with seed 0; the best
by the mean accuracy over the sizes, on rows for development, is trained anew with each of --seeds and tested. Seeds
change the initial weights and the order of the rows; all are tested on the same ones. Intervals are Wilson's over
queries.
Writes evals/results/mqar.json after every run.

Shapes: B rows, L tokens of a row, P queries of a row, Q = B * P queries, W windows of a row, V vocabulary.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, figure, provenance, write

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import Question, segments
from mamba_ssm.esi.reader import PAD, Memory
from mamba_ssm.esi.search import Query, TopK, half_window_maxima, window_scores
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.loop import train
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.metrics import wilson
from mamba_ssm.training.recall.mqar import TEST, TRAIN, VOCABULARY, Size, mqar
from mamba_ssm.training.retrieval import gold_windows

# Windows of two pairs start at every pair, so each pair lies whole in two of them. A block divides every length.
ESI = {
    "n_enc": 1,
    "d_search": 64,
    "segment": 80,
    "warmup": 16,
    "window": 4,
    "top_k": 4,
    "d_read": 32,
    "n_read": 1,
    "d_state": 16,
    "n_heads": 2,
    "question": 1,
}
PLAIN, WITH_ESI = "mamba", "mamba + esi"
RATES = (1e-3, 3e-3, 1e-2)
DECAY = 0.1
DEVELOPMENT_ROWS = 100
QUERIES_AT_ONCE = 8192  # when testing
# Of what seeds the rows are made: those of training, development and test differ.
TRAINING, DEVELOPMENT, TESTING = 0, 100, 200


@dataclass(frozen=True)
class Setting:
    """What both arms share; ``steps`` by arm."""

    steps: dict[str, int]
    rows: int = 192
    d_model: int = 64
    device: str = "cpu"
    vocabulary: int = VOCABULARY
    training: tuple[Size, ...] = TRAIN
    testing: tuple[Size, ...] = TEST


class Rows(NamedTuple):
    """inputs (B, L), the places of the queries (B, P), the p-th for the row's p-th pair, and their values (B, P)."""

    inputs: Tensor
    queries: Tensor
    values: Tensor

    def at(self, index: Any) -> Rows:
        return Rows(self.inputs[index], self.queries[index], self.values[index])


@cache
def rows_of(size: Size, seed: int, vocabulary: int, device: str) -> Rows:
    data = mqar(size, seed, vocabulary)
    inputs, targets, queries = (torch.from_numpy(part) for part in (data.inputs, data.targets, data.queries))
    return Rows(*(part.to(device) for part in (inputs, queries, targets.gather(1, queries))))


def build(arm: str, setting: Setting) -> MambaLMHeadModel:
    esi = ESI if arm == WITH_ESI else None
    config = MambaConfig(d_model=setting.d_model, n_layer=2, vocab_size=setting.vocabulary, esi=esi)
    return MambaLMHeadModel(config).to(setting.device)


def search(model: MambaLMHeadModel, rows: Rows) -> tuple[Question, Tensor]:
    """The queries as questions, and the scores (Q, W) of the windows of their rows, -inf where one ends too late."""
    searcher = model.searcher()
    config = searcher.config
    n, pairs = rows.queries.shape
    keys = searcher.segment_keys(segments(rows.inputs, config).flatten(0, 1)).unflatten(0, (n, -1)).flatten(1, 2)
    question = searcher.ask(rows.inputs.gather(1, rows.queries).view(-1, 1))
    # The queries of a row share its keys: until the maxima are there, they are the tokens of one question.
    vectors, weights = (part.view(n, pairs, -1) for part in (question.query.vectors, question.query.weights))
    maxima = half_window_maxima(Query(vectors, weights[..., 0]), keys, config.stride)
    scores = window_scores(question.query, maxima.flatten(0, 1)[:, None])
    late = window_starts(scores, config.stride) + config.window > rows.queries.view(-1, 1)
    return question, scores.masked_fill(late, float("-inf"))


def window_starts(scores: Tensor, stride: int) -> Tensor:
    return stride * torch.arange(scores.shape[1], device=scores.device)


def right_windows(scores: Tensor, pairs: int, config: ESIConfig) -> Tensor:
    """Which windows hold a query's pair, key and value: (Q, W)."""
    key = 2 * torch.arange(pairs, device=scores.device).repeat(len(scores) // pairs)
    pair = torch.stack([key, key + 1], -1)[:, None]
    return gold_windows(pair, window_starts(scores, config.stride), config.window)[:, 0]


def read(model: MambaLMHeadModel, rows: Rows, question: Question, scores: Tensor) -> Memory:
    """The best windows of each query, read beside it. Scores (Q, W) get no gradient: the search has its own loss."""
    searcher = model.searcher()
    config = searcher.config
    top = TopK(len(scores), config.top_k, scores.device)
    top.merge(scores.detach(), window_starts(scores, config.stride))
    starts = top.starts.view(len(rows.inputs), -1, 1)
    windows = rows.inputs.unfold(1, config.window, config.stride)
    ids = windows.gather(1, starts.clamp(min=0).div(config.stride, rounding_mode="floor").expand(-1, -1, config.window))
    ids = ids.view(len(scores), -1, config.window).masked_fill(top.scores[..., None] == float("-inf"), PAD)
    memory = searcher.read(question, ids, top.scores)
    assert memory is not None
    return memory


def query_logits(model: MambaLMHeadModel, rows: Rows, memory: Memory | None) -> Tensor:
    """Logits (Q, V) at the queries' places, each of which alone sees its row of the memory.

    What ESIMixin.forward_injected gives with a run for each query, for rows whose queries stand at different places.
    """
    backbone = model.backbone
    embedded = backbone.embedding(rows.inputs)
    at = rows.queries[..., None].expand(-1, -1, embedded.shape[2])
    if memory is None:
        hidden, residual = backbone.forward_layers(embedded)
    else:
        assert model.esi is not None
        n_enc = model.esi.config.n_enc
        hidden, residual = backbone.forward_layers(embedded, stop=n_enc)
        x = (hidden + residual).to(embedded.dtype).gather(1, at)
        added = model.esi.injection(x.flatten(0, 1)[:, None], memory).view_as(x)
        hidden = hidden.scatter_add(1, at, added.to(hidden.dtype))
        hidden, residual = backbone.forward_layers(hidden, residual, start=n_enc)
    hidden = backbone.final_norm(hidden, residual).gather(1, at).flatten(0, 1)[:, None]
    logits = model.lm_head(hidden)
    if memory is not None:
        logits = model.esi.injection.copy(logits, hidden, memory)
    return logits[:, 0]


def losses(model: MambaLMHeadModel, rows: Rows) -> dict[str, Tensor]:
    """Cross-entropy of the values; with ESI also -log of the share of the windows that hold the pair."""
    parts, memory = {}, None
    if model.esi is not None:
        question, scores = search(model, rows)
        right = right_windows(scores, rows.queries.shape[1], model.esi.config)
        parts["search"] = any_of_loss(scores, right[:, None])
        memory = read(model, rows, question, scores)
    parts["answer"] = F.cross_entropy(query_logits(model, rows, memory).float(), rows.values.flatten())
    return parts


@torch.no_grad()
def correct(model: MambaLMHeadModel, rows: Rows) -> tuple[int, int | None]:
    """How many queries are answered rightly; and for how many a window with the pair was found, with ESI."""
    memory, found = None, None
    if model.esi is not None:
        question, scores = search(model, rows)
        memory = read(model, rows, question, scores)
        right = right_windows(scores, rows.queries.shape[1], model.esi.config)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : model.esi.config.top_k]
        found = int(right.gather(1, best).any(1).sum())
    said = query_logits(model, rows, memory).argmax(-1)
    return int((said == rows.values.flatten()).sum()), found


def nothing_right(size: Size) -> dict[str, Any]:
    return {"length": size.length, "pairs": size.pairs, "queries": size.rows * size.pairs, "correct": 0}


def measure(model: MambaLMHeadModel, sizes: tuple[Size, ...], seed: int, setting: Setting) -> list[dict[str, Any]]:
    """Queries, and how many of them are answered rightly, by size. In fp32."""
    table = []
    for number, size in enumerate(sizes):
        rows = rows_of(size, seed + number, setting.vocabulary, setting.device)
        n = max(1, QUERIES_AT_ONCE // size.pairs)
        parts = [correct(model, rows.at(slice(i, i + n))) for i in range(0, size.rows, n)]
        row = nothing_right(size) | {"correct": sum(right for right, _ in parts)}
        if model.esi is not None:
            row["found"] = sum(found for _, found in parts if found is not None)
        table.append(row)
    return table


def run(setting: Setting, arm: str, rate: float, seed: int, development: bool) -> dict[str, Any]:
    """Train and measure one model. One whose loss is not finite any more counts as answering nothing."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build(arm, setting)
    training = [
        rows_of(size, TRAINING + i, setting.vocabulary, setting.device) for i, size in enumerate(setting.training)
    ]
    share = np.array([size.rows for size in setting.training]) / sum(size.rows for size in setting.training)
    log: list[str] = []

    def batches() -> Iterator[Rows]:
        while True:
            rows = training[rng.choice(len(training), p=share)]
            yield rows.at(torch.from_numpy(rng.integers(len(rows.inputs), size=setting.rows)).to(setting.device))

    steps = setting.steps[arm]
    row = {"arm": arm, "rate": rate, "seed": seed, "steps": steps}
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    sizes, made_of = setting.testing, TESTING
    if development:
        sizes, made_of = tuple(size._replace(rows=min(size.rows, DEVELOPMENT_ROWS)) for size in sizes), DEVELOPMENT
    started = time.perf_counter()
    try:
        train(
            model,
            partial(losses, model),
            steps,
            rate,
            batches(),
            capture=True,
            decay=DECAY,
            warmup=min(100, steps),
            log=log.append,
        )
    except FloatingPointError as error:
        return row | {"failed": str(error), "sizes": [nothing_right(size) for size in sizes], "log": log}
    row["seconds"] = {"train": time.perf_counter() - started}
    started = time.perf_counter()
    row["sizes"] = measure(model, sizes, made_of, setting)
    row["seconds"]["measure"] = time.perf_counter() - started
    return row | {"log": log}


def mean_accuracy(row: dict[str, Any]) -> float:
    return float(np.mean([size["correct"] / size["queries"] for size in row["sizes"]]))


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of an arm's runs by size: their mean, and each with its interval."""
    table = []
    for same in zip(*(run["sizes"] for run in runs), strict=True):
        each = [figure(n / of, wilson(n, of)) for n, of in ((size["correct"], size["queries"]) for size in same)]
        mean = float(np.mean([one["value"] for one in each]))
        table.append({"length": same[0]["length"], "pairs": same[0]["pairs"], "mean": mean, "by_seed": each})
    return table


def seeds(row: dict[str, Any]) -> str:
    """The mean of an arm's runs, and each of them."""
    return f"{row['mean']:.4f} (" + ", ".join(f"{one['value']:.4f}" for one in row["by_seed"]) + ")"


def sizes(text: str) -> Size:
    return Size(*map(int, text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once: small models leave a GPU idle")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--plain-steps", type=int, help="where the arm without ESI is to have more")
    parser.add_argument("--rows", type=int, default=192, help="of a batch (default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates to try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--train", type=sizes, nargs="+", default=TRAIN, metavar="LENGTH,PAIRS,ROWS")
    parser.add_argument("--test", type=sizes, nargs="+", default=TEST, metavar="LENGTH,PAIRS,ROWS")
    parser.add_argument("--out", type=Path, default=RESULTS / "mqar.json")
    arguments = parser.parse_args()
    setting = Setting(
        {WITH_ESI: arguments.steps, PLAIN: arguments.plain_steps or arguments.steps},
        arguments.rows,
        arguments.d_model,
        arguments.device,
        arguments.vocabulary,
        tuple(arguments.train),
        tuple(arguments.test),
    )
    result = provenance(arguments) | {"esi": ESI, "complete": False, "sweep": [], "runs": [], "accuracy": {}}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:

        def start(arm: str, rate: float, seed: int, development: bool) -> Future[dict[str, Any]]:
            return pool.submit(run, setting, arm, rate, seed, development)

        sweep = {start(arm, rate, 0, True) for arm in (PLAIN, WITH_ESI) for rate in arguments.rates}
        pending = set(sweep)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                row = future.result()
                arm, kind = row["arm"], "sweep" if future in sweep else "runs"
                result[kind].append(row)
                of_arm = [row for row in result[kind] if row["arm"] == arm]
                said = f"{arm}, {kind}, rate {row['rate']}, seed {row['seed']}: {mean_accuracy(row):.3f}"
                print(f"{said} {row.get('failed') or row['seconds']}", flush=True)
                if kind == "runs":
                    result["accuracy"][arm] = summary(of_arm)
                elif len(of_arm) == len(arguments.rates):
                    best = max(of_arm, key=mean_accuracy)["rate"]
                    pending |= {start(arm, best, seed, False) for seed in arguments.seeds}
                write(arguments.out, result)
    for plain, esi in zip(result["accuracy"][PLAIN], result["accuracy"][WITH_ESI], strict=True):
        print(f"| {plain['length']}, {plain['pairs']} | {seeds(plain)} | {seeds(esi)} |")
    result["complete"] = True
    write(arguments.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
