"""Start our token vectors from those of all-MiniLM-L6-v2 (Apache-2.0), which has read far more than we can train on.

    python scripts/borrow_token_table.py [--dir data] [--out data/token_table.safetensors]

"table" (32768, 256) float16: for each of our tokens the mean of MiniLM's input vectors (30522, 384) of the WordPieces
that cover the same characters of the tokenizer's training text; so a token that is a word gets the word's vector, and a
part of a word what its words mean. A token that the text never uses gets the mean of the pieces that spell it. The rows
are centred on their mean (each counted once), reduced by SVD, and scaled so that the root mean square of their norms is
1, relative norms kept. Tokens that meet no piece (white space, parts of a character, special tokens) are zero.

"idf" (32768,) float32: log((1 + windows) / (1 + windows with the token)) over the 64-token windows of the SQuAD
training articles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Encoding, Tokenizer
from train_tokenizer import SPECIALS, texts

from mamba_ssm.training.squad import Article, article_text, load_squad, training_articles

WIDTH = 256
WINDOW = 64
BATCH = 4096  # texts encoded at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("data"))
    parser.add_argument("--tokenizer", type=Path, default=Path("mamba_ssm/weights/default/tokenizer.json"))
    parser.add_argument("--out", type=Path, default=Path("data/token_table.safetensors"))
    arguments = parser.parse_args()
    ours = Tokenizer.from_file(str(arguments.tokenizer))
    minilm = Tokenizer.from_file(str(arguments.dir / "minilm" / "tokenizer.json"))
    minilm.no_truncation()
    minilm.no_padding()
    vectors = load_file(arguments.dir / "minilm" / "model.safetensors")["embeddings.word_embeddings.weight"]
    articles = training_articles(load_squad(arguments.dir / "squad" / "train-v1.1.json"))

    borrowed = covering_vectors(ours, minilm, list(texts(articles, arguments.dir / "text")), vectors)
    table, kept = reduce(borrowed)
    save_file({"table": table.astype(np.float16), "idf": inverse_document_frequency(ours, articles)}, arguments.out)
    filled = np.count_nonzero(table.any(axis=1))
    print(f"{arguments.out}: {filled:,} of {len(table):,} rows filled; {kept:.1%} of the variance kept")
    for text in (" king", " photosynthesis", " Beyoncé", "ing", " Paris"):
        print(f"{text!r}: {neighbours(ours, table, text)}")


def covering_vectors(ours: Tokenizer, minilm: Tokenizer, lines: list[str], vectors: NDArray) -> NDArray[np.float64]:
    """For each of our V tokens the mean, over the characters it covers in `lines`, of the vector of the piece there."""
    unknown = minilm.token_to_id("[UNK]")
    width = len(vectors)
    pairs = np.zeros(0, np.int64)
    counts = np.zeros(0, np.int64)
    for begin in range(0, len(lines), BATCH):
        batch = lines[begin : begin + BATCH]
        found = [pairs]
        weights = [counts]
        encoded = zip(
            batch, ours.encode_batch(batch), minilm.encode_batch(batch, add_special_tokens=False), strict=True
        )
        for line, tokens, pieces in encoded:
            token, piece = by_character(line, tokens), by_character(line, pieces)
            both = (token >= 0) & (piece >= 0) & (piece != unknown)
            found.append(token[both] * width + piece[both])
            weights.append(np.ones(len(found[-1]), np.int64))
        pairs, where = np.unique(np.concatenate(found), return_inverse=True)
        counts = np.bincount(where, np.concatenate(weights)).astype(np.int64)

    size = ours.get_vocab_size()
    total = np.bincount(pairs // width, counts, minlength=size)
    means = np.zeros((size, vectors.shape[1]))
    np.add.at(means, pairs // width, (counts / total[pairs // width])[:, None] * vectors[pairs % width])
    for token in np.flatnonzero(total[len(SPECIALS) :] == 0) + len(SPECIALS):
        text = ours.decode([int(token)])
        pieces = [i for i in minilm.encode(text, add_special_tokens=False).ids if i != unknown]
        if pieces and "\ufffd" not in text:
            means[token] = vectors[pieces].mean(axis=0)
    return means


def by_character(text: str, encoding: Encoding) -> NDArray[np.int64]:
    """The id of the token at each character, -1 where there is none."""
    ids = np.full(len(text), -1)
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        ids[start:end] = token
    return ids


def reduce(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centre and project the non-zero rows (V, 384) to (V, WIDTH); also the share of the variance that is kept."""
    filled = rows.any(axis=1)
    centred = rows[filled] - rows[filled].mean(axis=0)
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:WIDTH].T
    table = np.zeros((len(rows), WIDTH))
    table[filled] = projected / np.sqrt((projected**2).sum(axis=1).mean())
    return table, float((scales[:WIDTH] ** 2).sum() / (scales**2).sum())


def inverse_document_frequency(tokenizer: Tokenizer, articles: list[Article]) -> NDArray[np.float32]:
    holding = np.zeros(tokenizer.get_vocab_size())
    windows = 0
    for article in articles:
        ids = np.array(tokenizer.encode(article_text(article)[0]).ids)
        for begin in range(0, len(ids), WINDOW):
            holding[np.unique(ids[begin : begin + WINDOW])] += 1
            windows += 1
    return np.log((1 + windows) / (1 + holding)).astype(np.float32)


def neighbours(tokenizer: Tokenizer, table: NDArray[np.float64], text: str, count: int = 8) -> str:
    """A check for the eye: the tokens nearest by cosine to the (first) token of a text."""
    token = tokenizer.encode(text).ids[0]
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    cosines = unit @ unit[token]
    nearest = [i for i in np.argsort(-cosines) if i != token][:count]
    return f"{tokenizer.decode([token])!r}: " + ", ".join(
        f"{tokenizer.decode([int(i)])!r} {cosines[i]:.2f}" for i in nearest
    )


if __name__ == "__main__":
    main()
