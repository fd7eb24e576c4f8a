"""Recall of what a text says once: needles, chains, aliases and stories in haystacks of up to many millions of tokens.

    python evals/recall/run.py [--tasks single_word ...] [--haystacks text noise needles] [--lengths 4096 ...] [--n 100]
        [--share-haystack] [--search model|bm25] [--split test|train] [--model FOLDER] [--device cuda] [--out FILE]

Each trial lays the pieces of an example (mamba_ssm/training/recall) at uniform depths into a haystack of exactly so
many tokens, which is streamed through the search; the reader answers from the windows found. Haystacks are real text,
by default the example book and what lies in data/text, from a random place on, its paragraphs in another order after
its end; RULER's noise; or needles with other keys and nothing else. With --share-haystack all examples of a task lie in
one haystack, so that one pass serves them, and each distracts from the others; not passkey and the stories, whose
questions would have several answers.

Variables are asked for again with what was said, until nothing new is. Right: the answers named are exactly the right
ones, as SQuAD normalises them. Recall@k is the share of the gold spans (the answer where a sentence gives it, else the
sentence) that lie whole in one of the first k windows. The peak is the GPU's for this row; on a CPU the process's so
far. Tokens a second count all from the stream to the answers.
Writes evals/results/recall.json after every row, and the trials beside it as .jsonl.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, ROOT, mean, options, provenance, share, show, write
from recall.predict import KEPT, THRESHOLD, Prediction, predict
from recall.search import SEARCHES

from mamba_ssm.book import Engine
from mamba_ssm.text.normalise import normalise
from mamba_ssm.training.recall.example import Example
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.recall.haystack import Haystack
from mamba_ssm.training.recall.needles import HOPS, distractors
from mamba_ssm.training.recall.tasks import TASKS, UNSHAREABLE
from mamba_ssm.training.recall.words import Split, Words

LENGTHS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
KS = (1, 8, KEPT)
NEEDLE_TOKENS, MOST_NEEDLE_TOKENS = 20, 1 << 20  # at least so many a sentence; longer haystacks repeat them

Trial = dict[str, Any]


class Fillers:
    """What haystacks are made of, by name, with the words that are taken by it; made when first asked for."""

    def __init__(self, engine: Engine, files: Sequence[Path], cache: Path, split: Split, seed: int) -> None:
        self.tokenizer, self.files, self.cache = engine.tokenizer, files, cache
        self.split, self.seed = split, seed
        self._made: dict[tuple[str, int], tuple[Filler, set[str]]] = {}

    def get(self, name: str, length: int) -> tuple[Filler, set[str]]:
        key = name, min(length, MOST_NEEDLE_TOKENS) if name == "needles" else 0
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, name: str, tokens: int) -> tuple[Filler, set[str]]:
        if name == "text":
            return Filler.of_files(self.files, self.tokenizer, self.cache), set()
        if name == "noise":
            return Filler.noise(self.tokenizer), set()
        words = Words(random.Random(f"{self.seed} needles"), self.split)
        return Filler.of_paragraphs(distractors(words, tokens // NEEDLE_TOKENS), self.tokenizer), words.taken


def haystacks(
    task: str, length: int, filler: Filler, taken: set[str], arguments: Any
) -> Iterator[tuple[Haystack, list[Example]]]:
    """n examples, each in a haystack of its own, or all in one where that is asked for and can be."""
    shared = arguments.share_haystack and task not in UNSHAREABLE
    for number in range(1 if shared else arguments.n):
        rng = random.Random(f"{arguments.seed} {task} {length} {number}")
        words = Words(rng, arguments.split, taken)
        examples = [TASKS[task](words) for _ in range(arguments.n if shared else 1)]
        pieces = [piece for example in examples for piece in example.pieces]
        yield Haystack(filler, pieces, length, rng.getrandbits(32)), examples


def judge(haystack: Haystack, example: Example, prediction: Prediction, window: int) -> Trial:
    said, right = ({normalise(text) for text in texts} for texts in (prediction.answers, example.answers))
    gold = haystack.gold(example)

    def found(k: int) -> float:
        starts = prediction.windows[:k]
        held = sum(any(start <= first and last < start + window for start in starts) for first, last in gold)
        return held / len(gold)

    return {
        "question": example.question,
        "answers": example.answers,
        "said": prediction.answers,
        "right": said == right,
        "named": len(said & right) / len(right),
        "string_match": sum(any(answer in text for text in said) for answer in right) / len(right),
        "depths": [round(first / haystack.length, 4) for first, _ in gold],
        "recall": {f"@{k}": found(k) for k in KS},
    }


def trials(engine: Engine, task: str, length: int, filler: Filler, taken: set[str], arguments: Any) -> Iterator[Trial]:
    """One a question; ``tokens`` and ``seconds`` stand in the first of each haystack."""
    for haystack, examples in haystacks(task, length, filler, taken, arguments):
        started = time.perf_counter()
        search = SEARCHES[arguments.search](engine, haystack)
        several = len(examples[0].answers) > 1
        rounds = HOPS + 1 if task == "variables" else 1
        predictions = predict(engine, [example.question for example in examples], several, search, rounds)
        cost = {"tokens": length, "seconds": time.perf_counter() - started}
        for example, prediction in zip(examples, predictions, strict=True):
            yield judge(haystack, example, prediction, engine.config.window) | cost
            cost = {"tokens": 0, "seconds": 0.0}


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summary(done: Sequence[Trial], device: torch.device) -> dict[str, Any]:
    tokens, seconds = (sum(trial[name] for trial in done) for name in ("tokens", "seconds"))
    return {
        "trials": len(done),
        "accuracy": share([trial["right"] for trial in done]),
        "answers_named": mean([trial["named"] for trial in done]),
        "string_match": mean([trial["string_match"] for trial in done]),
        "recall": {f"@{k}": mean([trial["recall"][f"@{k}"] for trial in done]) for k in KS},
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak_bytes(device),
    }


def main() -> int:
    parser = options(__doc__ or "", n=100)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--haystacks", nargs="+", choices=("text", "noise", "needles"), default=["text"])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="in tokens")
    parser.add_argument("--share-haystack", action="store_true", help="all examples of a task in one haystack")
    parser.add_argument("--search", choices=SEARCHES, default="model")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="whose keys, names and templates")
    parser.add_argument("--filler", type=Path, nargs="+", help="texts; by default the example book and data/text/*.txt")
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "recall", help="where tokenised filler is kept")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / "recall.json"
    files = arguments.filler or [ROOT / "examples" / "abs-guide.md", *sorted((ROOT / "data" / "text").glob("*.txt"))]
    arguments.filler, cache = [file.name for file in files], arguments.cache
    del arguments.cache  # no part of how a result came about

    engine = Engine.load(arguments.model, arguments.device)
    fillers = Fillers(engine, files, cache, arguments.split, arguments.seed)
    result = provenance(arguments, engine) | {
        "protocol": {
            "right": "the answers named are exactly the right ones, normalised as SQuAD's",
            "string_match": "share of the right answers that stand in one that is named, which is how RULER counts",
            "recall": f"share of the gold spans in the first k of {KEPT} windows of {engine.config.window} tokens",
            "windows_read": engine.config.top_k,
            "asked_again": f"variables, with what was said, at most {HOPS} times",
            "several_answers": f"distinct spans in a sentence, of at least {THRESHOLD} of the best one's probability",
            "filler": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
            "intervals": "Wilson for accuracy; bootstrap over questions, 10,000 resamples, for the rest",
        },
        "complete": False,
        "rows": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".jsonl").open("w", encoding="utf-8") as lines:
        for length in arguments.lengths:
            for name in arguments.haystacks:
                filler, taken = fillers.get(name, length)
                for task in arguments.tasks:
                    if engine.device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats(engine.device)
                    done = list(trials(engine, task, length, filler, taken, arguments))
                    what = {"task": task, "haystack": name, "length": length}
                    shared = {"shared_haystack": arguments.share_haystack and task not in UNSHAREABLE}
                    row = what | shared | summary(done, engine.device)
                    result["rows"].append(row)
                    write(out, result)
                    lines.writelines(json.dumps(what | trial, ensure_ascii=False) + "\n" for trial in done)
                    lines.flush()
                    recalls = " ".join(f"{k} {value['value']:.2f}" for k, value in row["recall"].items())
                    show(f"{length:>10,} {name} {task}: recall {recalls}, accuracy", row["accuracy"])
    result["complete"] = True
    write(out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
