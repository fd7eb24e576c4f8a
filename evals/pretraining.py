"""What a run of `mamba-esi train lm` came to: its curve, what it says, and what ESI that was trained on top answers.

    mamba-esi train prepare data/text --out data/corpus
    mamba-esi train lm --data data/corpus --out data/lm ...
    mamba-esi train esi --model data/lm --data data/prepared --out data/lm_esi
    python evals/pretraining.py --run data/lm --esi data/lm_esi --device cuda

The curve is the run's metrics.jsonl; samples continue a few words at temperature 0.8. Recall of the search, exact match
and F1 are those of scripts/train_default.py: questions of the 40 development articles, in books of one and of all.
Writes evals/results/pretraining.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, options, provenance, write

from mamba_ssm.book import Engine
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.evaluate import SHELF, quality
from mamba_ssm.training.examples import Examples

PROMPTS = ("The function returns", "Anarchism is", "To create a table in the database,", "A list of numbers")
SAMPLED = 60  # tokens
KS = (1, 8, 32)


def samples(model: MambaLMHeadModel, tokenizer: Tokenizer, device: str) -> list[str]:
    said = []
    for prompt in PROMPTS:
        torch.manual_seed(0)
        ids = torch.from_numpy(tokenizer.encode(prompt).ids).long()[None].to(device)
        out = model.generate(ids, max_length=ids.shape[1] + SAMPLED, temperature=0.8, top_k=50)
        said.append(tokenizer.decode(out[0].tolist()))
    return said


def answers(model: MambaLMHeadModel, tokenizer: Tokenizer, examples: Examples, n: int, seed: int) -> dict[str, Any]:
    """Recall, exact match and F1 on ``n`` questions, by articles of a book."""
    chosen = np.random.default_rng(seed).permutation(len(examples.questions))[:n]
    rows, figures = torch.from_numpy(chosen), {}
    for articles in (1, SHELF):
        found = quality(model, examples, articles, tokenizer.decode, rows, KS)
        recalls = [found.pop(f"recall@{k}") for k in KS]
        figures[str(articles)] = {"recall@1/8/32": recalls, **found}
    return figures


def main() -> int:
    parser = options(__doc__ or "", n=2000)
    parser.add_argument("--run", type=Path, default=ROOT / "data" / "lm", help="the --out of `mamba-esi train lm`")
    parser.add_argument("--esi", type=Path, default=ROOT / "data" / "lm_esi", help="the --out of `train esi`")
    parser.add_argument("--examples", type=Path, default=ROOT / "data" / "prepared" / "dev.safetensors")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_folder(arguments.run)
    device = "cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu"
    model = MambaLMHeadModel.from_pretrained(arguments.run, device=device, esi=arguments.esi)
    engine = Engine(model, tokenizer, str(arguments.run))
    curve = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    state = max((arguments.run / "checkpoints").glob("step-*/state.json"))
    settings = json.loads(state.read_text(encoding="utf-8"))["config"]
    corpus = json.loads((Path(settings["data"]) / "manifest.json").read_text(encoding="utf-8"))
    result = provenance(arguments, engine) | {
        "settings": settings,
        "corpus": {name: corpus[name] for name in ("tokens", "documents")},
        "parameters": sum(p.numel() for name, p in model.named_parameters() if not name.startswith("esi.")),
        "curve": curve,
        "samples": samples(model, tokenizer, device),
        "answers": answers(model, tokenizer, Examples.load(arguments.examples), arguments.n, arguments.seed),
    }
    write(arguments.out or RESULTS / "pretraining.json", result)
    for line in result["samples"]:
        print(repr(line))
    print(json.dumps(result["answers"]), curve[-1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
