"""Scores of windows from a table through the door, against loops."""

import math

import pytest
import torch

from mamba_ssm.ops.table_scores import table_scores


@pytest.mark.parametrize(("vocabulary", "question", "halves"), [(50, 3, 2), (7, 16, 9), (300, 37, 400), (4, 1, 1)])
def test_scores_are_loops(backend_name: str, vocabulary: int, question: int, halves: int) -> None:
    stride = 4
    table, ids = torch.randn(vocabulary, question) - 3, torch.randint(vocabulary, (halves * stride,)).int()
    scores = table_scores(table, ids, stride)
    assert scores.shape == (halves - 1,)
    rows, tokens = table.tolist(), ids.tolist()
    for w in range(halves - 1):
        window = tokens[w * stride : (w + 2) * stride]
        expected = math.fsum(max(rows[token][j] for token in window) for j in range(question))
        assert scores[w].item() == pytest.approx(expected, rel=1e-5)
