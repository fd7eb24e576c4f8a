"""Train the default model: the search; a teacher for the reader; the reader, on what was found; the language model.

    python scripts/prepare_data.py && python scripts/train_default.py --out data/run
    python scripts/pack_model.py data/run/model mamba_ssm/weights/default

Sixteen minutes on an H200. With --small, less of everything and no teacher: a worse model, for a machine without a
GPU.
The data with their licences and the results are in mamba_ssm/weights/default/README.md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training import teacher as teaching
from mamba_ssm.training.borrowed import ENCODER_RATE, TABLE_RATE, start
from mamba_ssm.training.esi_training import SEARCH_RATE, train_esi
from mamba_ssm.training.evaluate import SHELF, quality
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.plan import READ, Plan
from mamba_ssm.training.reading import Mined, ReadBatches, Taught
from mamba_ssm.utils.hf import dequantise, read_weights

TOKENIZER = Path(__file__).parent.parent / "mamba_ssm/weights/default"
GEOMETRY = {"d_model": 256, "n_layer": 6, "vocab_size": 32768, "ssm_cfg": {"d_state": 8}}
ESI = {"n_enc": 1, "d_state": 8, "n_read": 3}
DEVELOPMENT_QUESTIONS = 2000
TEACHER_RATE, TEACHER_ROWS = 1e-4, 64
SMALL_ARTICLES = 60
SMALL = {
    "search_steps": 100,
    "read_steps": 700,
    "language_steps": 100,
    "articles": 4,
    "batch": 16,
    "teacher_steps": 0,
    "minings": 1,
}


def build(data: Path) -> MambaLMHeadModel:
    """A fresh model whose token table and token weights are borrowed, and whose keys begin without context."""
    model = MambaLMHeadModel(MambaConfig(**GEOMETRY, esi=ESI))
    start(model, load_file(data / "token_table.safetensors"), ESI["n_enc"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--out", type=Path, default=Path("data/run"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search-steps", type=int, default=900)
    parser.add_argument("--teacher-steps", type=int, default=2000, help="0 for none")
    parser.add_argument("--read-steps", type=int, default=14000)
    parser.add_argument("--minings", type=int, default=2, help="times that windows are found for the reader")
    parser.add_argument("--language-steps", type=int, default=1500)
    parser.add_argument("--articles", type=int, default=12, help="article crops in a batch of the search")
    parser.add_argument("--crop", type=int, default=4032, help="tokens of a crop, a multiple of 192")
    parser.add_argument("--batch", type=int, default=96, help="questions in a batch of the reader")
    parser.add_argument("--small", action="store_true", help="set the steps and sizes to what a CPU can do")
    args = parser.parse_args()
    if args.small:
        vars(args).update(SMALL)

    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    half = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": device.type == "cuda"}
    args.out.mkdir(parents=True, exist_ok=True)
    training, development, recall_books, headings = (
        Examples.load(args.data / f"{name}.safetensors") for name in ("train", "dev", "recall", "headings")
    )
    if args.small:
        training, recall_books, headings = (e.first(SMALL_ARTICLES) for e in (training, recall_books, headings))
    tokenizer = Tokenizer.from_folder(TOKENIZER)
    model = build(args.data).to(device)

    with (args.out / "log.txt").open("w") as log_file:

        def log(line: str) -> None:
            print(line, flush=True)
            print(line, file=log_file, flush=True)

        def report(stage: str, answers: bool) -> None:
            """Recall, and with ``answers`` exact match and F1, on articles that are kept out for development."""
            chosen = np.random.default_rng(0).permutation(len(development.questions))[:DEVELOPMENT_QUESTIONS]
            rows, line = torch.from_numpy(chosen), {"stage": stage}
            decode = tokenizer.decode if answers else None
            with torch.autocast(**half):
                model.eval()
                for articles in (1, SHELF):
                    found = quality(model, development, articles, decode, rows, (1, 8, 32))
                    line[f"{articles} articles"] = {name: round(value, 4) for name, value in found.items()}
            log(json.dumps(line))

        @functools.cache
        def teacher() -> teaching.Teacher:
            pieces = teaching.Pieces.load(args.data / "pieces.safetensors").to(device)
            weights = args.data / "teacher.safetensors"
            margin = model.searcher().config.margin
            return teaching.Teacher(dequantise(read_weights(weights), weights), pieces, margin).to(device)

        def teach(mined: Mined) -> list[Taught]:
            """Of what is found first, the teacher learns itself."""
            config = model.searcher().config
            if not teacher.cache_info().currsize:
                lessons = ReadBatches(training, mined, TEACHER_ROWS, READ, config, (args.seed,), device)
                batches = map(lessons.at, itertools.count())
                teaching.tune(teacher(), batches, args.teacher_steps, TEACHER_RATE, log)
            return teacher().eval().label(training, mined, config.window)

        def done(stage: str) -> None:
            model.save_pretrained(args.out / "model")
            if stage != "reader":  # which the language model leaves as it is
                report(stage, answers=stage != "search")

        plan = Plan(
            search_rates={"backbone.embedding": TABLE_RATE, "backbone.layers": ENCODER_RATE},
            read_rates={
                "backbone.embedding": TABLE_RATE * ENCODER_RATE,
                "esi.search": SEARCH_RATE,
                **{f"backbone.layers.{layer}.": ENCODER_RATE for layer in range(ESI["n_enc"])},
            },
            search_steps=args.search_steps,
            read_steps=args.read_steps,
            language_steps=args.language_steps,
            crops=args.articles,
            crop=args.crop,
            batch=args.batch,
            seed=args.seed,
        )
        taught = teach if args.teacher_steps else None
        train_esi(model, training, plan, log, None, done, recall_books, headings, taught, args.minings)


if __name__ == "__main__":
    main()
