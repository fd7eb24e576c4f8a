"""Scores of windows of a text whose keys are rows of a table: the door. Shapes: see ops/reference/table_scores.py."""

from torch import Tensor

from mamba_ssm.ops import backend


def table_scores(table: Tensor, ids: Tensor, stride: int) -> Tensor:
    """table (V, M), ids (L,) int32 -> scores (L / stride - 1,) of windows of two half windows of `stride` tokens."""
    return backend.module("table_scores", table).table_scores(table, ids, stride)
