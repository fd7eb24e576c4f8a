"""Peak memory and speed of `mamba-esi ask` while it streams texts of 100k, 1M and 4M tokens.

    python evals/flat_memory.py [--model FOLDER] [--tokens 100000 1000000 4000000] [--out FILE]

The texts are the example book's sentences in random order, again and again, as .txt. Each size runs the real command in
a fresh process; its peak is what the kernel counted (ru_maxrss). Tokens a second count reading and searching, not the
start of the process. Exit status 1 if the largest peak exceeds the smallest by more than 10%.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, provenance, write

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer

TARGET = 1.10
QUESTION = "What does the trap command do?"
# The parent must be small: until a child has started its own program, its peak is its parent's.
CHILD = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"peak": peak * (1 if sys.platform == "darwin" else 1024), "answer": json.loads(done.stdout)}))
"""


def write_text(path: Path, tokens: int) -> None:
    """A text of about so many tokens."""
    book = (ROOT / "examples" / "abs-guide.md").read_text(encoding="utf-8")
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", book) if 20 < len(part) < 1000]
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    lengths = [len(tokenizer.encode(f"{sentence} ").ids) for sentence in sentences]
    order = random.Random(0)
    tokens += tokens // 50  # sentences have a few tokens less in a text than alone
    with path.open("w", encoding="utf-8") as file:
        while tokens > 0:
            for index in order.sample(range(len(sentences)), len(sentences)):
                file.write(sentences[index] + ("\n\n" if order.random() < 0.2 else " "))
                tokens -= lengths[index]
                if tokens <= 0:
                    return


def measure(path: Path, model: str | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "mamba_ssm.cli.main", "ask", str(path), QUESTION, "--json", "--device", "cpu"]
    command += ["--model", model] if model else []
    done = subprocess.run([sys.executable, "-c", CHILD, *command], stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    answer = result["answer"]
    seconds = answer["seconds"]
    return {
        "tokens": answer["book"]["tokens"],
        "characters": answer["book"]["characters"],
        "peak_bytes": result["peak"],
        "seconds": seconds,
        "tokens_per_second": answer["book"]["tokens"] / (seconds["read"] + seconds["search"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="by default the model in the package")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--out", type=Path, default=RESULTS / "flat_memory.json")
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for tokens in arguments.tokens:
            path = Path(folder) / f"{tokens}.txt"
            write_text(path, tokens)
            run = measure(path, arguments.model)
            runs.append(run)
            path.unlink()
            print(f"{run['tokens']:>9,} tokens: peak {run['peak_bytes'] / 2**20:,.0f} MiB, ", end="")
            print(f"{run['tokens_per_second']:,.0f} tokens/s")
    peaks = [run["peak_bytes"] for run in runs]
    ratio = max(peaks) / min(peaks)
    result = provenance(arguments) | {
        "model": arguments.model or "default",
        "runs": runs,
        "peak_ratio": ratio,
        "target_ratio": TARGET,
    }
    write(arguments.out, result)
    print(f"largest peak over smallest: {ratio:.3f} (target at most {TARGET})")
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())
