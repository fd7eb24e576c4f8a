"""Pretrain a plain Mamba language model, with no ESI, on the free books and SQuAD's training articles.

    python scripts/fetch_data.py && python scripts/pretrain_plain.py --prepare
    python scripts/pretrain_plain.py --out data/plain

A checkpoint of the published layout to measure on where there is none to be had: 24 million parameters, three minutes
on an H100. The last fiftieth of each book is held out, and its perplexity reported. Data and licences: docs/data.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.ops.linear_cross_entropy import linear_cross_entropy
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.loop import train
from mamba_ssm.training.squad import load_squad, training_articles

TOKENIZER = Path(__file__).parent.parent / "mamba_ssm/weights/default"
GEOMETRY = {"d_model": 384, "n_layer": 12, "vocab_size": 32768}
HELD_OUT = 50  # one part of so many, the last, of each book
END = 0


def prepare(data: Path, out: Path) -> None:
    """Tokens of all texts, an end-of-text token after each: (T,) to learn from, and (H,) held out."""
    tokenizer = Tokenizer.from_folder(TOKENIZER)
    kept, held = [], []
    for path in sorted((data / "text").glob("*.txt")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8")).ids
        cut = len(ids) - len(ids) // HELD_OUT
        kept += [ids[:cut], [END]]
        held += [ids[cut:], [END]]
    for article in training_articles(load_squad(data / "squad/train-v1.1.json")):
        kept += [tokenizer.encode("\n".join(p.text for p in article.paragraphs)).ids, [END]]
    tensors = {
        name: torch.from_numpy(np.concatenate(parts).astype(np.int16))  # ids end at 32767
        for name, parts in {"kept": kept, "held": held}.items()
    }
    print({name: len(ids) for name, ids in tensors.items()})
    save_file(tensors, out)


@torch.no_grad()
def perplexity(model: MambaLMHeadModel, ids: Tensor, length: int = 2048, rows: int = 8) -> float:
    """exp of the mean cross-entropy of ids (T,), cut into pieces of `length` tokens, each read from nothing."""
    pieces = ids[: len(ids) // length * length].view(-1, length).long()
    total = 0.0
    for part in pieces.split(rows):
        part = part.to(model.lm_head.weight.device)
        logits = model(part).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (len(pieces) * (length - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tokens", type=Path, default=Path("data/prepared/books.safetensors"))
    parser.add_argument("--prepare", action="store_true", help="write the token file, and stop")
    parser.add_argument("--out", type=Path, default=Path("data/plain"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.data, args.tokens)
        return
    torch.manual_seed(args.seed)
    tokens = load_file(args.tokens)
    kept = tokens["kept"].to(args.device)
    model = MambaLMHeadModel(MambaConfig(**GEOMETRY)).to(args.device)

    def loss(_: int) -> dict[str, Tensor]:
        start = torch.randint(len(kept) - args.length - 1, (args.batch, 1), device=args.device)
        ids = kept[start + torch.arange(args.length + 1, device=args.device)].long()
        hidden = model.backbone(ids[:, :-1])
        return {"loss": linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())}

    args.out.mkdir(parents=True, exist_ok=True)
    train(model, loss, args.steps, lr=2e-3, decay=0.1, warmup=200)
    held = perplexity(model, tokens["held"])
    print(json.dumps({"held-out perplexity": held, "parameters": sum(p.numel() for p in model.parameters())}))
    model.half().save_pretrained(args.out)
    Tokenizer.from_folder(TOKENIZER).save(args.out)


if __name__ == "__main__":
    main()
