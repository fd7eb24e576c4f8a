"""What int8 weights cost: a model's perplexity on held-out text with its weights as they are and in int8.

    python scripts/pretrain_plain.py --prepare && python scripts/pretrain_plain.py --out data/plain
    python evals/int8_perplexity.py --model data/plain

The text is what scripts/pretrain_plain.py keeps out: the last fiftieth of each free book, in pieces of 2,048 tokens.
Every piece is read by the model as it prefills; decoding in int8 gives the same logits, as a test sees to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import RESULTS, ROOT, provenance, write
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "scripts"))
from pretrain_plain import perplexity

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

TARGET = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/plain")
    parser.add_argument("--tokens", type=Path, default=ROOT / "data/prepared/books.safetensors")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8_perplexity.json")
    arguments = parser.parse_args()
    held = load_file(arguments.tokens)["held"]
    model = MambaLMHeadModel.from_pretrained(arguments.model)
    before = perplexity(model, held)
    after = perplexity(model.to_int8(), held)
    print(f"perplexity {before:.4f} in fp32, {after:.4f} in int8: {after / before - 1:+.3%}")
    result = {"tokens": len(held), "fp32": before, "int8": after, "change": after / before - 1, "target": TARGET}
    write(arguments.out, provenance(arguments) | result)
    return int(after > before * (1 + TARGET))


if __name__ == "__main__":
    sys.exit(main())
