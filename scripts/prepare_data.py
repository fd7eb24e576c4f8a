"""Turn the fetched data into the token arrays that training reads.

python scripts/prepare_data.py --data data --out data/prepared
"""

from __future__ import annotations

import argparse
import random
import shutil
from dataclasses import replace
from pathlib import Path

from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import build_examples
from mamba_ssm.training.planted import plant
from mamba_ssm.training.squad import Article, development_titles, load_squad

TOKENIZER = Path(__file__).parent.parent / "mamba_ssm/weights/default"
PLANTED = 0.08
LOWER_CASED = 0.15


def lower_some(article: Article, rng: random.Random) -> Article:
    """People type questions in lower case: so do some of these."""

    def paragraphs():
        for p in article.paragraphs:
            asked = [replace(q, text=q.text.lower()) if rng.random() < LOWER_CASED else q for q in p.questions]
            yield replace(p, questions=asked)

    return replace(article, paragraphs=list(paragraphs()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("data/prepared"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    articles = load_squad(args.data / "squad/train-v1.1.json")
    held = development_titles(articles)
    rng = random.Random(0)
    training = [plant(lower_some(a, rng), rng, PLANTED) for a in articles if a.title not in held]
    tokenizer = Tokenizer.from_folder(TOKENIZER)
    for name, part in (("train", training), ("dev", [a for a in articles if a.title in held])):
        examples = build_examples(part, tokenizer)
        examples.save(args.out / f"{name}.safetensors")
        print(f"{name}: {len(part)} articles, {len(examples.ids)} tokens, {len(examples.questions)} questions")
    shutil.copy(args.data / "token_table.safetensors", args.out / "token_table.safetensors")


if __name__ == "__main__":
    main()
