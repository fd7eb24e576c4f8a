"""What a published checkpoint gains from ESI: without search, without training, and with ESI trained for it.

    python scripts/pretrain_plain.py && python scripts/prepare_data.py
    python evals/adapters.py --train --device cuda

The checkpoint is the plain Mamba of scripts/pretrain_plain.py, of the published layout; the books are the 40
development articles of SQuAD, one at a time and all in one. Four rows: the model alone reads the book; search with its
own embeddings, reranking and replay, without training; ESI trained on SQuAD's training articles, the model as it is;
and trained together with the model. With --train the last two are trained first, into --trained; else they are taken
from there. Questions and hits are those of evals/squad.py. Writes evals/results/adapters.json.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, mean, options, provenance, share, show, write
from squad import ask_books, load_split, questions_of, recalls

from mamba_ssm.book import Engine
from mamba_ssm.book.engine import DEFAULT_MODEL, device_of
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.config import BACKBONE_RATE
from mamba_ssm.training.esi_training import tune
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.squad import article_text

FROZEN, WHOLE = "esi", "whole"  # folders: ESI for the checkpoint as it is, and a checkpoint that was tuned with it
BOOKS = (1, 40)


def figures(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall of evidence, where there is some, exact match and F1, with 95% intervals."""
    found = recalls([row["rank"] for row in records], None) if "rank" in records[0] else {}
    return {
        "questions": len(records),
        "recall": {k: found.get(k) for k in ("@1", "@8")},
        "exact_match": share([row["em"] for row in records]),
        "f1": mean([row["f1"] for row in records]),
    }


def load(model: Path, device: torch.device, esi: Path | None = None) -> Engine:
    """An engine with the default tokenizer, which the plain checkpoint was trained with."""
    loaded = MambaLMHeadModel.from_pretrained(model, device=device, esi=esi)
    return Engine(loaded, Tokenizer.from_folder(DEFAULT_MODEL), str(model))


def train(arguments: Any, device: torch.device) -> dict[str, float]:
    """Train ESI for the checkpoint twice, as it is and with it: the seconds that each took."""
    examples = Examples.load(arguments.examples)
    seconds = {}
    for name in (FROZEN, WHOLE):
        engine, started = load(arguments.model, device), time.perf_counter()
        tune(
            engine.model,
            examples,
            engine.tokenizer,
            arguments.steps,
            batch=arguments.batch,
            seed=arguments.seed,
            backbone_rate=BACKBONE_RATE if name == WHOLE else 0.0,
        )
        seconds[name] = time.perf_counter() - started
        save = engine.model.save_esi if name == FROZEN else engine.model.save_pretrained
        save(arguments.trained / name)
    return seconds


def rows(arguments: Any, device: torch.device, each: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of each row in books of ``each`` articles."""
    articles = load_split("development", arguments.data)
    texts = [article_text(article)[0] for article in articles]
    everything = list(questions_of(articles))
    asked = random.Random(arguments.seed).sample(everything, min(arguments.n, len(everything)))
    untrained = list(ask_books(load(arguments.model, device), texts, asked, each, plain=True, peers=False))
    yield "plain", figures([row["plain"] for row in untrained])
    yield "training-free", figures(untrained)
    tuned = load(arguments.model, device, arguments.trained / FROZEN)
    yield "ESI tuned, backbone frozen", figures(list(ask_books(tuned, texts, asked, each, plain=False, peers=False)))
    whole = load(arguments.trained / WHOLE, device)
    yield "tuned with backbone", figures(list(ask_books(whole, texts, asked, each, plain=False, peers=False)))


def main() -> int:
    parser = options(__doc__ or "", n=400)
    parser.set_defaults(model=ROOT / "data" / "plain")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "squad", help="where SQuAD lies")
    parser.add_argument("--examples", type=Path, default=ROOT / "data" / "prepared" / "train.safetensors")
    parser.add_argument("--trained", type=Path, default=ROOT / "data" / "adapters", help="what --train wrote")
    parser.add_argument("--train", action="store_true", help="train ESI first")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=96)
    arguments = parser.parse_args()
    arguments.model = Path(arguments.model)
    out = arguments.out or RESULTS / "adapters.json"
    device = device_of(arguments.device)
    seconds = train(arguments, device) if arguments.train else None
    result = provenance(arguments, load(arguments.model, device)) | {
        "training_seconds": seconds,
        "protocol": "as evals/squad.py; intervals: Wilson for proportions, bootstrap over questions for F1",
        "books": {},
    }
    for each in BOOKS:
        book = result["books"][f"{each} article{'s' if each > 1 else ''}"] = {}
        for name, found in rows(arguments, device, each):
            book[name] = found
            write(out, result)
            print(f"\n{name}, book of {each}: {found['questions']} questions")
            for key, value in {**found["recall"], "exact match": found["exact_match"], "F1": found["f1"]}.items():
                if value is not None:
                    show(f"  {key}", value)
    print(f"\nwritten to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
