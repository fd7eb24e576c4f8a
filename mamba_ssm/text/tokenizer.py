"""Text to token ids with the characters that each token covers, whole or as a stream in bounded memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_ssm.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
END_OF_TEXT, QUESTION, ANSWER = "<|endoftext|>", "<|question|>", "<|answer|>"
SPECIALS = (END_OF_TEXT, QUESTION, ANSWER, *(f"<|reserved{i}|>" for i in range(3, 8)))

# No token of ours crosses from a non-space into a space or newline (scripts/train_tokenizer.py), so cutting there
# changes no id; the newline keeps its place in the white space that follows.
_SAFE_CUT = re.compile(r"\S(?=[ \n])")
_NEAR = 1024  # a cut is looked for this close to the end of a block before the whole block is searched
_SURROGATE = re.compile("[\ud800-\udfff]")


class Encoded(NamedTuple):
    """Tokens (L,): ids int32; token i covers characters starts[i]:ends[i] (int64), its leading space included.

    The spans follow one another without gaps. Tokens that are parts of one character all cover that character.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class Tokenizer:
    """A `tokenizers.Tokenizer` that takes any str as plain text and gives it back unchanged.

    Text that spells a special token ("<|endoftext|>") is text like any other: the special ids are only ever put in by
    number, as `end_of_text`, `question` and `answer` (None where the vocabulary lacks the name).
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # "encode them as text", in the library's words
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.special_ids: dict[str, int] = {
            name: token for name in SPECIALS if (token := inner.token_to_id(name)) is not None
        }
        self._special = frozenset(self.special_ids.values())
        self.end_of_text = self.special_ids.get(END_OF_TEXT)
        self.question = self.special_ids.get(QUESTION)
        self.answer = self.special_ids.get(ANSWER)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a checkpoint folder. Raises CheckpointError if its tokenizer.json is missing or damaged."""
        import tokenizers

        path = Path(folder) / FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path}: {error.strerror}; a checkpoint needs its {FILE} beside the weights"
            ) from error
        try:
            return cls(tokenizers.Tokenizer.from_buffer(content))
        except Exception as error:  # the library raises bare Exception for whatever its parser dislikes
            raise CheckpointError(f"{path} is damaged ({error}); fetch the checkpoint again") from error

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """sha256 of all that ids depend on."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, as a checkpoint has it beside its weights."""
        partial = Path(folder) / f".{FILE}.part"
        self._inner.save(str(partial))
        partial.replace(Path(folder) / FILE)

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether the tokens of both are the same, by the same numbers."""
        return self._inner.get_vocab() == other._inner.get_vocab()

    def encode(self, text: str) -> Encoded:
        """The tokens of a text. Lone surrogates, which are no characters, are read as U+FFFD."""
        try:
            encoding = self._inner.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            encoding = self._inner.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False)
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return Encoded(np.array(encoding.ids, dtype=np.int32), spans[:, 0].copy(), spans[:, 1].copy())

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids (L,) of each text, on all cores; RAYON_NUM_THREADS says how many. As `encode` has them."""
        try:
            encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            whole = [_SURROGATE.sub("\ufffd", text) for text in texts]
            encodings = self._inner.encode_batch_fast(whole, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_stream(self, pieces: Iterable[str], block: int = 65536) -> Iterator[Encoded]:
        """The tokens of "".join(pieces) in blocks of at most `block` characters, with offsets into the whole.

        The ids equal those of `encode` over the whole text, however it comes in pieces, as long as every `block`
        characters hold a space or newline after a non-space; where they hold none, the text is cut all the same.
        Memory is bounded by `block` and the longest piece.
        """
        offset = 0
        for text in cut_blocks(pieces, block):
            ids, starts, ends = self.encode(text)
            yield Encoded(ids, starts + offset, ends + offset)
            offset += len(text)

    def decode(self, ids: Iterable[int] | NDArray[np.integer]) -> str:
        """The text of the tokens; special tokens have none, and parts of a character become U+FFFD."""
        return self._inner.decode([i for i in map(int, ids) if i not in self._special], skip_special_tokens=False)


def cut_blocks(pieces: Iterable[str], block: int) -> Iterator[str]:
    """The joined pieces, cut where it is safe: no token would span the cut."""
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length > block:
            text = "".join(waiting)
            begin = 0
            while length > block:
                cut = _last_safe_cut(text, begin, begin + block)
                yield text[begin:cut]
                length -= cut - begin
                begin = cut
            waiting = [text[begin:]]
    if length:
        yield "".join(waiting)


def _last_safe_cut(text: str, begin: int, end: int) -> int:
    """The last safe cut in text[begin:end + 1], after `begin`; `end` if there is none."""
    for start in (max(begin, end - _NEAR), begin):
        cuts = [match.end() for match in _SAFE_CUT.finditer(text, start, end + 1)]
        if cuts:
            return cuts[-1]
    return end
