"""Find a random six-digit passkey, said in one sentence anywhere in real text of 4k, 64k and 1M tokens.

    python evals/passkey.py [--lengths 4000 64000 1000000] [--n 50] [--filler FILE ...]

Each trial writes a .txt of real text in its own order, from a random paragraph on, puts the sentence at a sentence's
end, and asks through the streaming path of the command (`mamba-esi ask`). Depths are uniform: trial i of n lies in the
i-th n-th of the text. Right is an answer whose only digits are the passkey's. The text is the example book and what
lies in data/text; where it is too short it is repeated, its paragraphs in random order. Writes
evals/results/passkey.json after every trial.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, options, provenance, share, show, write

from mamba_ssm.book import Engine, open_book
from mamba_ssm.text.tokenizer import Tokenizer

SENTENCE = "The passkey is {key}."
QUESTION = "What is the passkey?"
LENGTHS = (4_000, 64_000, 1_000_000)
TARGET = 0.95
PASSAGES = 8
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|\n\n+")


@dataclass(frozen=True)
class Filler:
    """Paragraphs of real text in their own order, and how many tokens each has."""

    paragraphs: list[str]
    tokens: list[int]

    @classmethod
    def read(cls, files: Sequence[Path], tokenizer: Tokenizer) -> Filler:
        paragraphs = [part for file in files for part in re.split(r"\n\n+", file.read_text("utf-8")) if part.strip()]
        return cls(paragraphs, [len(tokenizer.encode(f"{part}\n\n").ids) for part in paragraphs])

    def text(self, tokens: int, rng: random.Random) -> str:
        """About so many tokens: from a random paragraph on, and then, where that is not enough, in random order."""
        parts, left = [], tokens
        for place in self._order(rng):
            if self.tokens[place] > left:  # the last paragraph is cut to fit
                parts.append(self.paragraphs[place][: len(self.paragraphs[place]) * left // self.tokens[place]])
                break
            parts.append(self.paragraphs[place])
            left -= self.tokens[place]
        return "\n\n".join(parts)

    def _order(self, rng: random.Random) -> Iterator[int]:
        yield from range(rng.randrange(len(self.paragraphs)), len(self.paragraphs))
        while True:
            yield from rng.sample(range(len(self.paragraphs)), len(self.paragraphs))


def plant(text: str, key: str, depth: float) -> tuple[str, int]:
    """Put the sentence at the first sentence's end from ``depth`` (0 to 1) on -> text, and where the sentence begins.

    Raises ValueError if the text already says the key: the trial would have two places to find it.
    """
    if key in text:
        raise ValueError(f"the text already holds {key}")
    match = _SENTENCE_END.search(text, int(depth * len(text)))
    at = match.end() if match else len(text)
    sentence = SENTENCE.format(key=key)
    return f"{text[:at]}{'' if match else ' '}{sentence} {text[at:]}", at + (0 if match else 1)


def is_right(answer: str, key: str) -> bool:
    return re.findall(r"\d+", answer) == [key]


def trial(engine: Engine, filler: Filler, tokens: int, number: int, n: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{seed} {tokens} {number}")
    text = filler.text(tokens, rng)
    key = next(key for key in iter(lambda: f"{rng.randrange(100_000, 1_000_000)}", "") if key not in text)
    depth = (number + rng.random()) / n
    text, start = plant(text, key, depth)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "haystack.txt"
        path.write_text(text, encoding="utf-8", newline="\n")
        with open_book(path, engine) as book:
            answer = book.ask(QUESTION, passages=PASSAGES)
    found = next((rank for rank, passage in enumerate(answer.evidence, 1) if key in passage.text), None)
    return {
        "length": tokens,
        "tokens": answer.book.tokens,
        "key": key,
        "depth": round(start / len(text), 4),
        "answer": answer.text,
        "confidence": round(answer.confidence, 4),
        "right": is_right(answer.text, key),
        "rank": found,
        "seconds": round(time.perf_counter() - started, 2),
    }


def summary(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "trials": len(trials),
        "answer_right": share([t["right"] for t in trials], TARGET),
        f"passage_recall@{PASSAGES}": share([t["rank"] is not None for t in trials]),
    }


def main() -> int:
    parser = options(__doc__ or "", n=50)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="in tokens")
    parser.add_argument("--filler", type=Path, nargs="+", help="texts; by default the example book and data/text/*.txt")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / "passkey.json"
    files = arguments.filler or [ROOT / "examples" / "abs-guide.md", *sorted((ROOT / "data" / "text").glob("*.txt"))]
    arguments.filler = [file.name for file in files]

    engine = Engine.load(arguments.model, arguments.device)
    filler = Filler.read(files, engine.tokenizer)
    result = provenance(arguments, engine) | {
        "protocol": {
            "sentence": SENTENCE.format(key="482913"),
            "question": QUESTION,
            "right": "the only digits of the answer are the passkey's",
            "filler": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
            "filler_tokens": sum(filler.tokens),
            "training_saw": "sentences of this form with random values (mamba_ssm/training/planted.py)",
        },
        "complete": False,
        "lengths": {},
        "trials": [],
    }
    for tokens in arguments.lengths:
        done: list[dict[str, Any]] = []
        for number in range(arguments.n):
            done.append(trial(engine, filler, tokens, number, arguments.n, arguments.seed))
            result["trials"].append(done[-1])
            result["lengths"][str(tokens)] = summary(done)
            write(out, result)
            last = done[-1]
            said = f"{last['key']} at {last['depth']:.2f}: {'right' if last['right'] else 'wrong'}, {last['answer']!r}"
            print(f"{tokens:>9,} {number + 1:>3}/{arguments.n} {said}, {last['seconds']:.1f} s", flush=True)
        show(f"{tokens:,} tokens, answers right", result["lengths"][str(tokens)]["answer_right"])
    result["complete"] = True
    write(out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
