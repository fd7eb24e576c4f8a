"""Train the default model: first the search, then, on what it finds, the reader and the language model.

    python scripts/train_default.py --data data/prepared --out data/run

The recipe, the data with their licences and the results are in the model card, mamba_ssm/weights/default/README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.evaluate import absolute_gold, answer_quality, mine, recall, window_ids
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.loop import train
from mamba_ssm.training.reading import ReadBatch, answer_loss, answer_sequences, span_loss
from mamba_ssm.training.retrieval import search_batches, search_loss

TOKENIZER = Path(__file__).parent.parent / "mamba_ssm/weights/default/tokenizer.json"
MAX_ANSWER = 16


def build(args: argparse.Namespace) -> MambaLMHeadModel:
    """A fresh model whose token table and token weights are borrowed."""
    esi = {"n_enc": args.n_enc, "d_state": args.d_state, "n_read": args.n_read}
    config = MambaConfig(
        d_model=args.d_model, n_layer=args.n_layer, vocab_size=32768, ssm_cfg={"d_state": args.d_state}, esi=esi
    )
    model = MambaLMHeadModel(config)
    borrowed = load_file(args.data / "token_table.safetensors")
    with torch.no_grad():
        model.backbone.embedding.weight.copy_(borrowed["table"].float() * args.table_scale)
        model.esi.search.prior.weight.copy_(borrowed["idf"].clamp(min=0.1).log()[:, None] * args.idf_power)
        model.backbone.norm_f.weight.fill_(1.0 / args.d_model**0.5)
        # Keys begin as token embeddings; what context adds to them grows from nothing.
        for layer in model.backbone.layers[: args.n_enc]:
            layer.mixer.out_proj.weight *= args.context_init
    return model


def read_batches(examples, mined, rng, args, device):
    """Endless batches: each question with windows of its article or of a shelf of articles."""
    ids = torch.from_numpy(examples.ids)
    gold, questions = absolute_gold(examples), torch.from_numpy(examples.questions)
    k, window = args.k, 64
    while True:
        rows = torch.from_numpy(rng.choice(len(questions), args.batch, replace=False))
        starts_all, scores_all = mined[int(rng.integers(len(mined)))]
        starts, scores = starts_all[rows], scores_all[rows]
        # Drop some windows at random, so that the reader does not learn the ranks by heart, and sees more.
        noise = torch.rand(starts.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31)))) < args.drop
        order = (noise.int() * 1000 + torch.arange(starts.shape[1])).argsort(1)[:, :k]
        starts, scores = starts.gather(1, order), scores.gather(1, order)
        g = gold[rows]
        # Where the search missed, half of the time the last window becomes one that holds the answer.
        missed = ~((starts[..., None] <= g[:, None, :, 0]) & (g[:, None, :, 1] < starts[..., None] + window)).any(
            -1
        ).any(1)
        fix = missed & torch.from_numpy(rng.random(len(rows)) < 0.5)
        room = (window - (g[:, 0, 1] - g[:, 0, 0] + 1)).clamp(min=0)
        start = (g[:, 0, 0] - (torch.from_numpy(rng.random(len(rows))) * (room + 1)).long()).clamp(min=0)
        starts[fix, -1] = start[fix]
        answers = torch.zeros(len(rows), MAX_ANSWER, dtype=torch.long)
        for i, (a, b) in enumerate(g[:, 0].tolist()):
            answer = ids[a : min(b + 1, a + MAX_ANSWER)]
            answers[i, : len(answer)] = answer
        batch = [questions[rows], window_ids(ids, starts, window), scores, starts, g, answers]
        yield ReadBatch(*(t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t for t in batch))


def plain_sequences(batch: ReadBatch, ids: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The text around the answers of some questions, then question and answer: what a Mamba without ESI learns from."""
    start = (batch.gold[:rows, 0, 0].cpu() - 96).clamp(0, len(ids) - 192)
    return answer_sequences(batch.questions[:rows], batch.answers[:rows], ids[start[:, None] + torch.arange(192)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--out", type=Path, default=Path("data/run"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    for name, value in {
        "d_model": 256,
        "n_layer": 6,
        "n_enc": 1,
        "n_read": 3,
        "d_state": 8,
        "search_steps": 700,
        "read_steps": 4000,
        "crops": 12,
        "crop_tokens": 4032,
        "questions": 256,
        "batch": 96,
        "k": 8,
        "shelf": 40,
        "search_lr": 1e-3,
        "read_lr": 1e-3,
        "table_scale": 4.0,
        "idf_power": 1.0,
        "enc_slow": 0.5,
        "table_slow": 0.1,
        "drop": 0.15,
        "joint": 1,
        "decay": 0.01,
        "lm": 0.3,
        "context_init": 0.0,
        "word_dropout": 0.1,
        "plain_rows": 16,
    }.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--start", type=Path, help="a folder with a model whose search is trained")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    rng = np.random.default_rng(args.seed)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    log_file = (args.out / "log.txt").open("w")

    def log(line: str) -> None:
        print(line, flush=True)
        print(line, file=log_file, flush=True)

    log(json.dumps({k: str(v) for k, v in vars(args).items()}))
    training, development = Examples.load(args.data / "train.safetensors"), Examples.load(args.data / "dev.safetensors")
    decode = Tokenizer.from_file(str(TOKENIZER)).decode
    model = (MambaLMHeadModel.from_pretrained(args.start) if args.start else build(args)).to(device)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(development.questions))[:2000])
    gold = absolute_gold(development)

    def report(stage: str, answers: bool) -> None:
        model.eval()
        line = {"stage": stage}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for n in (1, 40):
                starts, scores = mine(model, development, n, 64)
                line[f"R@1/8/32 of {n}"] = [round(r, 4) for r in recall(starts[rows], gold[rows], 64, (1, 8, 32))]
                if answers:
                    for k in (8, 16):
                        em = answer_quality(model, development, starts[:, :k], scores[:, :k], decode, rows)
                        line[f"EM/F1 of {n} k={k}"] = [round(r, 4) for r in em]
        log(json.dumps(line))

    searching = search_batches(training, args.crops, args.crop_tokens, args.questions, rng, args.word_dropout)

    def to_device(batch):
        return type(batch)(*(getattr(batch, f).to(device) for f in batch.__dataclass_fields__))

    if not args.start:
        slow = {"backbone.embedding": args.table_slow, "backbone.layers": args.enc_slow, "esi.search.prior": 1.0}
        train(
            model,
            lambda _: {"search": search_loss(model, to_device(next(searching)))},
            args.search_steps,
            args.search_lr,
            args.decay,
            slow=slow,
            log=log,
        )
        report("search", False)
        model.save_pretrained(args.out / "search")

    if args.read_steps:
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mined = [mine(model, training, n, 24) for n in (1, args.shelf)]
        log(f"mined in {time.perf_counter() - began:.1f} s")
        all_ids = torch.from_numpy(training.ids)
        batches = read_batches(training, mined, rng, args, device)
        searcher = model.searcher()

        def loss(step: int) -> dict[str, torch.Tensor]:
            batch = next(batches)
            memory = searcher.read(searcher.ask(batch.questions), batch.windows, batch.scores)
            parts = {"span": span_loss(model, memory, batch)}
            if args.lm:
                ids, targets = answer_sequences(batch.questions, batch.answers)
                parts["answer"] = args.lm * answer_loss(model, memory, ids.to(device), targets.to(device))
            if args.lm and step % 3 == 1:
                ids, targets = plain_sequences(batch, all_ids, args.plain_rows)
                parts["plain"] = args.lm * answer_loss(model, None, ids.to(device), targets.to(device))
            if args.joint and step % 3 == 0:
                parts["search"] = search_loss(model, to_device(next(searching)))
            return parts

        s = args.enc_slow if args.joint else 0.0
        slow = {
            "backbone.embedding": args.table_slow * s,
            "esi.search": s,
            **{f"backbone.layers.{i}.": s for i in range(args.n_enc)},
        }

        def checkpoint(step: int) -> None:
            if step and step % 1000 == 0:
                model.save_pretrained(args.out / "model")

        train(model, loss, args.read_steps, args.read_lr, args.decay, slow=slow, log=log, after=checkpoint)
        model.save_pretrained(args.out / "model")
        report("reader", True)


if __name__ == "__main__":
    main()
