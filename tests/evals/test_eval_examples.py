"""How the example book's questions are scored."""

import json

import pytest

import examples
from mamba_ssm.text import read_pieces


def test_gold_spans_are_answers_in_the_text_that_evidence_counts_in():
    book = "".join(piece.text for piece in read_pieces(examples.EXAMPLES / "abs-guide.md"))
    for line in (examples.EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        said = {book[a:b] for a, b in examples.gold_spans(example)}
        assert said & set(example["answers"]), example["question"]


@pytest.mark.parametrize(("said", "inside"), [("the range 64 - 113", 1.0), ("64", 0.0), ("164 - 1130", 0.0), ("", 0.0)])
def test_contains_looks_for_whole_words(said, inside):
    assert examples.contains(said, "64 - 113") == inside


def test_the_table_keeps_bars_and_lines_inside_their_cells():
    row = {"question": "a|b?", "answer": "x\ny", "exact_match": 0.0, "contains": 1.0, "f1": 0.5, "rank": None}
    assert examples.table([row]).splitlines()[-1] == "| a\\|b? | x y | in it | 0.50 | – |"
