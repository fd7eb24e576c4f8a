"""Books of a few thousand tokens with examples of the recall tasks in them, to train on beside real questions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.recall.filler import Filler
from mamba_ssm.training.recall.haystack import Haystack
from mamba_ssm.training.recall.needles import HOPS, variables_so_far
from mamba_ssm.training.recall.tasks import TASKS
from mamba_ssm.training.recall.words import Words

TOKENS = 4032
IN_A_BOOK = {
    "single_word": 2,
    "single_number": 2,
    "single_uuid": 2,
    "multi_key": 3,
    "multi_value": 3,
    "multi_query": 3,
    "alias": 12,
    "passkey": 1,
    "variables_so_far": 3,
}
MAKERS = TASKS | {"variables_so_far": variables_so_far}
GOLD = HOPS + 1  # answers that a question has at most
MAX_QUESTION = 64  # tokens: one that lists four keys is long


def recall_books(n: int, fillers: Sequence[Filler], tokenizer: Tokenizer, seed: int) -> Examples:
    """n books of TOKENS tokens each, of the fillers in turn, with the examples of IN_A_BOOK, of the split "train"."""
    texts, questions, article, gold = [], [], [], []
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        words = Words(rng, "train")
        examples = [MAKERS[task](words) for task, times in IN_A_BOOK.items() for _ in range(times)]
        pieces = [piece for example in examples for piece in example.pieces]
        haystack = Haystack(fillers[number % len(fillers)], pieces, TOKENS, rng.getrandbits(32))
        texts.append(np.concatenate(list(haystack.blocks(TOKENS))))
        for example in examples:
            ids = tokenizer.encode(example.question).ids[:MAX_QUESTION]
            questions.append(np.pad(ids, (0, MAX_QUESTION - len(ids))))
            spans = haystack.gold(example)
            gold.append(spans + [(-1, -1)] * (GOLD - len(spans)))
            article.append(number)
    return Examples(
        ids=np.concatenate(texts).astype(np.int64),
        offsets=TOKENS * np.arange(n + 1, dtype=np.int64),
        questions=np.stack(questions).astype(np.int64),
        article=np.array(article, dtype=np.int64),
        gold=np.array(gold, dtype=np.int64),
        paragraph=np.tile(np.array([[0, TOKENS]], dtype=np.int64), (len(article), 1)),
    )
