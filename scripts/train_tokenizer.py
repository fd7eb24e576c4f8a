"""Train the default model's vocabulary: byte-level BPE of 32,768 tokens, lossless for any text.

    python scripts/train_tokenizer.py [--dir data] [--out mamba_ssm/weights/default/tokenizer.json]

Text: SQuAD train without its development articles (contexts and questions), a third of it once more in lower case so
that questions typed without capitals cost no more tokens, and a bounded sample of the free books. The same data gives
the same file, byte for byte. BPE: Sennrich et al. 2016 (arXiv 1508.07909); on bytes: Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mamba_ssm.training.squad import Article, load_squad, training_articles

VOCABULARY = 32768
SPECIALS = ["<|endoftext|>", "<|question|>", "<|answer|>", *(f"<|reserved{i}|>" for i in range(3, 8))]
BOOK_CHARACTERS = 7_500_000  # at most a quarter of all: the books are narrower than what people read
BOOKS = ["anarchism", "maxima-doc", "octave-doc", "postgresql-doc-15", "python3.11-doc"]
# A token never crosses from a non-space into a space, so text may be cut there (Tokenizer.encode_stream relies on it),
# and never joins letters with punctuation or two digits, so that answers begin and end at tokens.
PIECES = (
    r"""(?i:['’](?:s|t|d|m|ll|re|ve)(?![\p{L}\p{M}]))| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("mamba_ssm/weights/default/tokenizer.json"))
    arguments = parser.parse_args()
    articles = training_articles(load_squad(arguments.dir / "squad" / "train-v1.1.json"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(articles, arguments.dir / "text"), trainer)
    form = json.loads(tokenizer.to_str())
    # Ids 0 to 7 stay, but are not matched inside text: a book that spells "<|endoftext|>" is text like any other.
    form["added_tokens"] = []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(form, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    print(f"{arguments.out}: {tokenizer.get_vocab_size():,} tokens, {arguments.out.stat().st_size:,} bytes")


def texts(articles: list[Article], books: Path) -> Iterator[str]:
    squad = [
        text for article in articles for p in article.paragraphs for text in (p.text, *(q.text for q in p.questions))
    ]
    yield from squad
    yield from (text.lower() for text in squad[::3])
    for name in BOOKS:
        yield from sample((books / f"{name}.txt").read_text(encoding="utf-8"), BOOK_CHARACTERS // len(BOOKS))


def sample(text: str, characters: int) -> Iterator[str]:
    """Evenly spaced stretches of a text, so that every chapter has its share."""
    length = 4096
    count = min(len(text), characters) // length
    for i in range(count):
        start = i * (len(text) - length) // max(count - 1, 1)
        yield text[start : start + length]


if __name__ == "__main__":
    main()
