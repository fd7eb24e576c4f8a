"""Text that haystacks are made of, as token ids in a file that is mapped into memory.

Shapes: T tokens, P paragraphs, C cuts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.text.tokenizer import Tokenizer

Ints = NDArray[np.int64]

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""RULER's noise (Hsieh et al. 2024, arXiv 2404.06654)."""

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*$")
_WORD_END = re.compile(r"[^\W\d_]{3}\W*$")  # no "p. ", no "1. "
_CLOSING = re.compile(r"[\"'”’)\]]+")


@dataclass(frozen=True)
class Filler:
    """Tokens (T,) uint16; the first token of each paragraph (P,); where a sentence may be put in, before these (C,).

    A cut is behind a sentence that ends inside of a paragraph; the first is -1, that there always is one.
    The tokens of a paragraph begin with its empty line, and no token crosses a cut, so that paragraphs in any order,
    with sentences between, are tokenised as the whole text would be.
    """

    tokens: NDArray[np.uint16]
    paragraphs: Ints
    cuts: Ints
    tokenizer: Tokenizer

    @classmethod
    def of(cls, tokens: NDArray[np.uint16], tokenizer: Tokenizer) -> Filler:
        texts = _vocabulary(tokenizer)
        line = np.array([text.startswith("\n") for text in texts])
        only_line = np.array([text == "\n" for text in texts])
        two_lines = np.array([text.startswith("\n\n") for text in texts])
        space = np.array([text[:1] in (" ", "\n") and text != "" for text in texts])
        full = np.array([text != "" and not text[-1].isspace() for text in texts])
        end = np.array([bool(_SENTENCE_END.search(text)) for text in texts])
        bare = np.array([not re.search(r"\w", text) for text in texts])
        word = np.array([bool(_WORD_END.search(text)) for text in texts])
        closing = np.array([bool(_CLOSING.fullmatch(text)) for text in texts])
        before, here, after = tokens[:-2], tokens[1:-1], tokens[2:]
        starts = full[before] & (two_lines[here] | (only_line[here] & line[after]))
        ends = end[tokens] & word[tokens]
        ends[1:] |= end[tokens[1:]] & bare[tokens[1:]] & word[tokens[:-1]]
        ends[1:] |= closing[tokens[1:]] & ends[:-1]
        inside = ends[:-2] & space[here] & ~starts
        paragraphs = np.concatenate([[0], np.flatnonzero(starts) + 1])
        # Behind a heading or code on one line, none could tell where a sentence begins.
        cuts = np.concatenate([[-1], np.flatnonzero(inside) + 1]) if inside.any() else paragraphs
        return cls(tokens, paragraphs, cuts, tokenizer)

    @classmethod
    def of_paragraphs(cls, paragraphs: Sequence[str], tokenizer: Tokenizer) -> Filler:
        """A filler that is kept in memory."""
        return cls.of(tokenizer.encode("".join(f"\n\n{text}" for text in paragraphs)).ids.astype(np.uint16), tokenizer)

    @classmethod
    def noise(cls, tokenizer: Tokenizer) -> Filler:
        return cls.of_paragraphs([NOISE] * 1000, tokenizer)  # many, so that a lap is long

    @classmethod
    def of_files(cls, files: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> Filler:
        """The texts of ``files``, tokenised once into a file in ``folder`` whose name says what it was made of.

        Raises ValueError for a vocabulary of more than 65,536 tokens.
        """
        if tokenizer.vocab_size > 1 << 16:
            raise ValueError(f"a filler holds 16 bits a token, too few for {tokenizer.vocab_size} tokens")
        made_of = hashlib.sha256("\0".join(_vocabulary(tokenizer)).encode())
        for file in files:
            made_of.update(hashlib.sha256(file.read_bytes()).digest())
        path = folder / f"filler-{made_of.hexdigest()[:16]}.uint16"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            with partial.open("wb") as out:
                for encoded in tokenizer.encode_stream(_texts(files)):
                    encoded.ids.astype(np.uint16).tofile(out)
            partial.replace(path)
        return cls.of(np.memmap(path, np.uint16, "r"), tokenizer)


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]


def _texts(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        yield "\n\n" + file.read_text(encoding="utf-8").strip()
