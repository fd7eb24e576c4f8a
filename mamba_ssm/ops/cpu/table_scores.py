"""Scores of windows from a table, on a CPU: a row of the table for each token of the text, and no row is stored again.

Letters: V vocabulary, M question tokens, L text tokens, H half windows.
"""

from typing import Any

import numpy as np
import torch.nn.functional as F
from numba import carray
from torch import Tensor

from mamba_ssm.ops.cpu.arithmetic import fast, floats, pointer
from mamba_ssm.ops.cpu.kernel import addresses, kernel, record, thread, thread_count, threads_for, use_wide_vectors

LANES = 16
TABLE_SCORES = record("table ids scores halves stride lanes")


def table_scores(table: Tensor, ids: Tensor, stride: int) -> Tensor:
    """table (V, M) fp32, ids (L,) int32 -> (H - 1,); see the reference."""
    if table.shape[1] % LANES:
        table = F.pad(table, (0, -table.shape[1] % LANES))  # what is added scores 0
    table = table.contiguous()
    halves, lanes = len(ids) // stride, table.shape[1]
    scores = table.new_empty(max(halves - 1, 0))
    if halves > 1:
        run(
            threads_for(halves - 1, stride * lanes),
            2 * lanes,
            **addresses(table=table, ids=ids.contiguous(), scores=scores),
            **{"halves": halves, "stride": stride, "lanes": lanes},
        )
    return scores


@fast
def best_of_half(best: Any, table: Any, ids: Any, lanes: Any) -> None:
    """The best of each lane in the rows of some tokens."""
    for first in range(0, lanes, LANES):
        part = best[first : first + LANES]
        for j in range(LANES):
            part[j] = np.float32(-3e38)
        for t in range(len(ids)):
            row = floats(table + 4 * (np.int64(ids[t]) * lanes + first), LANES)
            for j in range(LANES):
                part[j] = max(part[j], row[j])


@kernel(TABLE_SCORES)
def run(where: Any) -> None:
    use_wide_vectors()
    p = carray(where, (1,), TABLE_SCORES)[0]
    me, all_threads = thread(p), thread_count(p)
    S = floats(p.scratch + me * p.scratch_bytes, 2 * p.lanes)
    ids = carray(pointer(p.ids), (p.halves * p.stride,), np.int32)
    scores = floats(p.scores, p.halves - 1)
    first, last = (p.halves - 1) * me // all_threads, (p.halves - 1) * (me + 1) // all_threads
    before, best = S[: p.lanes], S[p.lanes : 2 * p.lanes]
    best_of_half(before, p.table, ids[first * p.stride : (first + 1) * p.stride], p.lanes)
    for w in range(first, last):
        best_of_half(best, p.table, ids[(w + 1) * p.stride : (w + 2) * p.stride], p.lanes)
        total = np.float32(0)
        for j in range(p.lanes):
            total += max(before[j], best[j])
            before[j] = best[j]
        scores[w] = total
