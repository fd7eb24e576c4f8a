"""Rank the windows of the tests by MiniLM, and by its fusion with BM25 (reciprocal ranks, Cormack et al. 2009).

    python evals/mechanisms/rank.py [--texts data/mechanisms.safetensors] [--device cuda] [--out FILE]

Needs transformers; half an hour on two cores, or seconds on a GPU. Writes data/mechanisms_rankings.safetensors after
every test, and goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import ROOT
from mechanisms.texts import STRIDE, TESTS, WINDOW, Texts, load, strings

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.teacher import minilm

RANKED = 64
FUSION = 60  # the constant of reciprocal rank fusion


class MiniLM:
    """all-MiniLM-L6-v2: unit vectors of texts, the mean of the last states."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from tokenizers import Tokenizer as WordPieces

        self.model = minilm(load_file(folder / "model.safetensors")).eval().to(device)
        self.device = device
        self.tokenizer = WordPieces.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """-> (texts, 384). Texts of like length go together, for padding is read too."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), 384, device=self.device)
        batch = 64 if self.device.type == "cpu" else 1024
        for places in (order[i : i + batch] for i in range(0, len(order), batch)):
            encoded = self.tokenizer.encode_batch([texts[place] for place in places])
            ids, mask = (
                torch.tensor([getattr(e, name) for e in encoded], device=self.device)
                for name in ("ids", "attention_mask")
            )
            with torch.autocast(self.device.type, torch.bfloat16):
                states = self.model(ids, attention_mask=mask).last_hidden_state.float()
            out[places] = F.normalize((states * mask[..., None]).sum(1), dim=-1)
        return out


def ranked(texts: Texts, tokenizer: Tokenizer, embed: MiniLM) -> dict[str, Tensor]:
    """The best windows (N, P, RANKED) of each question, by number, as each search orders them."""
    found: dict[str, list[Tensor]] = {"bm25": [], "minilm": [], "fusion": []}
    for text, questions, bm25 in zip(texts.ids, texts.questions, texts.rankings["bm25"].long(), strict=True):
        windows = embed(strings(text.unfold(0, WINDOW, STRIDE), tokenizer))
        minilm = (embed(strings(questions, tokenizer)) @ windows.T).argsort(1, descending=True).cpu()
        fused = sum(1.0 / (FUSION + 1 + order.argsort(1)) for order in (bm25, minilm))
        fusion = torch.as_tensor(fused).argsort(dim=1, descending=True, stable=True)
        for name, order in ("bm25", bm25), ("minilm", minilm), ("fusion", fusion):
            found[name].append(order[:, :RANKED])
    return {name: torch.stack(rows) for name, rows in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = ROOT / "data"
    parser.add_argument("--minilm", type=Path, default=data / "minilm", help="a folder")
    parser.add_argument("--texts", type=Path, default=data / "mechanisms.safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=data / "mechanisms_rankings.safetensors")
    arguments = parser.parse_args()
    tokenizer, sets = Tokenizer.from_folder(DEFAULT_MODEL), load(arguments.texts, "cpu")
    embed = MiniLM(arguments.minilm, torch.device(arguments.device))
    done = load_file(arguments.out) if arguments.out.exists() else {}
    for name in sorted(TESTS, key=TESTS.__getitem__):
        if f"{name}/minilm" in done:
            continue
        done |= {f"{name}/{by}": order.to(torch.uint16) for by, order in ranked(sets[name], tokenizer, embed).items()}
        partial = arguments.out.with_suffix(".part")
        save_file(done, partial)
        partial.replace(arguments.out)
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
