"""Turn the fetched data into the token arrays that training reads.

    python scripts/fetch_data.py && python scripts/fetch_more_text.py && python scripts/borrow_token_table.py
    python scripts/prepare_data.py --data data --out data/prepared

Beside the default model goes training_data.json.gz, the fingerprints of all articles and books that training reads, for
the test that nothing held out is among them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
from fetch_data import BOOKS, sections_of
from fetch_more_text import HEADED
from pack_model import int8_rows
from safetensors.torch import load_file, save_file

from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import build_examples
from mamba_ssm.training.headings import heading_articles
from mamba_ssm.training.heldout import fingerprints, read_fingerprints, write_training_manifest
from mamba_ssm.training.planted import plant
from mamba_ssm.training.recall.books import recall_books
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.squad import Article, article_text, development_titles, load_squad, training_articles
from mamba_ssm.training.teacher import UNUSED, Pieces, pieces_of_tokens

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "mamba_ssm/weights/default"
HELD_OUT = ROOT / "tests/training/heldout_fingerprints.json.gz"
PLANTED = 0.08
LOWER_CASED = 0.15
RECALL_BOOKS = 4000
QUESTION_PIECES = 40


def lower_some(article: Article, rng: random.Random) -> Article:
    """People type questions in lower case: so do some of these."""

    def paragraphs():
        for p in article.paragraphs:
            asked = [replace(q, text=q.text.lower()) if rng.random() < LOWER_CASED else q for q in p.questions]
            yield replace(p, questions=asked)

    return replace(article, paragraphs=list(paragraphs()))


def headed_articles(data: Path, rng: random.Random) -> list[Article]:
    """Of the sections of all manuals that may be trained on, but those with a paragraph that is held out, too."""
    held_out = read_fingerprints(HELD_OUT)
    articles = []
    for book in sorted([*BOOKS, *HEADED], key=sections_of):
        with (data / sections_of(book)).open(encoding="utf-8") as lines:
            sections = [
                (heading, text)
                for heading, text in map(json.loads, lines)
                if not fingerprints([], {heading: text}).shared_with(held_out)
            ]
        articles += heading_articles(book.package, sections)
    return [lower_some(article, rng) for article in articles]


def joined(articles: Iterable[Article]) -> dict[str, str]:
    """The texts of articles, by title."""
    texts: dict[str, str] = {}
    for article in articles:
        texts[article.title] = texts.get(article.title, "") + article_text(article)[0] + "\n\n"
    return texts


def teacher_pieces(articles: Sequence[Article], tokenizer: Tokenizer, minilm: tokenizers.Tokenizer) -> Pieces:
    """The WordPieces that the teacher reads, in the order of build_examples."""
    ids: list[int] = []
    questions, firsts, lasts = [], [], []
    for article in articles:
        text, _ = article_text(article)
        encoded, own = minilm.encode(text, add_special_tokens=False), tokenizer.encode(text)
        first, last = pieces_of_tokens(text, own.starts, own.ends, np.array(encoded.offsets))
        firsts.append(first + len(ids))
        lasts.append(last + len(ids))
        ids += encoded.ids
        for question in (question for paragraph in article.paragraphs for question in paragraph.questions):
            asked = minilm.encode(question.text, add_special_tokens=False).ids[:QUESTION_PIECES]
            questions.append(asked + [0] * (QUESTION_PIECES - len(asked)))
    return Pieces(*map(torch.as_tensor, (ids, questions, np.concatenate(firsts), np.concatenate(lasts))))


def rounded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices in 8 bits with a scale a row, so that the teacher is quickly moved to where there is a GPU."""
    return {
        key: value
        for name, tensor in weights.items()
        if not name.startswith(UNUSED)
        for key, value in (int8_rows(name, tensor) if tensor.ndim == 2 else {name: tensor}).items()
    }


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
    minilm = tokenizers.Tokenizer.from_file(str(args.data / "minilm" / "tokenizer.json"))
    minilm.no_truncation()
    minilm.no_padding()
    teacher_pieces(training, tokenizer, minilm).save(args.out / "pieces.safetensors")
    save_file(rounded(load_file(args.data / "minilm" / "model.safetensors")), args.out / "teacher.safetensors")
    headed = headed_articles(args.data, random.Random(1))
    headings = build_examples(headed, tokenizer)
    headings.save(args.out / "headings.safetensors")
    print(f"headings: {len(headed)} articles, {len(headings.ids)} tokens, {len(headings.questions)} headings")
    books = sorted((args.data / "text").glob("*.txt"))
    texts = joined(headed) | {path.stem: path.read_text(encoding="utf-8") for path in books}
    write_training_manifest(TOKENIZER / "training_data.json.gz", training_articles(articles), texts)
    paragraphs = [paragraph.text for article in training for paragraph in article.paragraphs]
    fillers = [Filler.of_files(books, tokenizer, args.data / "recall"), Filler.of_paragraphs(paragraphs, tokenizer)]
    recall_books(RECALL_BOOKS, fillers, tokenizer, seed=0).save(args.out / "recall.safetensors")
    shutil.copy(args.data / "token_table.safetensors", args.out / "token_table.safetensors")


if __name__ == "__main__":
    main()
