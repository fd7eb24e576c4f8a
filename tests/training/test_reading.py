"""Batches of the reader: which windows it sees, and what it learns from a teacher."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.reading import ReadBatches, Taught, order_loss, taught_loss
from mamba_ssm.training.retrieval import search_book

W, MARGIN, FOUND, K = 8, 2, 6, 3
READ = W + 2 * MARGIN
CONFIG = ESIConfig(window=W, margin=MARGIN)


def a_text():
    rng = np.random.default_rng(1)
    n = 20
    at = rng.integers(0, 90, n)
    gold = np.stack([at, at + 1], -1)[:, None]
    questions = np.arange(1, n + 1)[:, None].repeat(2, 1)
    zeros = np.zeros(n, dtype=np.int64)
    return Examples(np.arange(1, 101), np.array([0, 100]), questions, zeros, gold, np.tile([[0, 100]], (n, 1)))


def found(examples):
    """Six windows a question; the last one found holds the answer."""
    wrong = (examples.gold[:, 0, :1] + np.arange(20, 20 + 12 * (FOUND - 1), 12)) % 92
    starts = torch.from_numpy(np.concatenate([wrong, examples.gold[:, 0, :1]], 1))
    return [(starts, torch.arange(FOUND, 0, -1.0).expand(len(starts), -1).contiguous())]


@pytest.fixture
def examples():
    return a_text()


@pytest.fixture
def mined(examples):
    return found(examples)


def test_every_question_comes_once_before_one_comes_again(examples, mined):
    batches = map(ReadBatches(examples, mined, 5, K, CONFIG, (0,), "cpu").at, range(4))
    assert sorted(torch.cat([batch.numbers for batch in batches]).tolist()) == list(range(20))


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_processes_share_a_step_of_their_own(step, rows, ranks, seed):
    """Whatever was asked for before; fewer questions than processes are everybody's."""
    examples, mined = a_text(), found(a_text())
    batches = ReadBatches(examples, mined, rows, K, CONFIG, (seed,), "cpu")
    whole = ReadBatches(examples, mined, rows, K, CONFIG, (seed,), "cpu").at(step)
    parts = [batches.at(step, rank, ranks) for rank in reversed(range(ranks))][::-1]
    for name in ("numbers", "questions", "windows", "before", "scores", "starts", "gold", "answers"):
        shares = [getattr(part, name) for part in parts]
        if rows < ranks:
            assert all(torch.equal(share, getattr(whole, name)) for share in shares)
        else:
            together = [shares[row % ranks][row // ranks] for row in range(rows)]
            assert sum(map(len, shares)) == rows
            assert torch.equal(torch.stack(together), getattr(whole, name))


def test_the_answer_is_mostly_seen_and_sometimes_not(examples, mined):
    batches = map(ReadBatches(examples, mined, 20, K, CONFIG, (0,), "cpu").at, range(50))
    seen = [
        (batch.starts == batch.gold[:, 0, :1]).any(1).float().mean().item() for batch in batches
    ]  # found last of six: by chance alone it would be in fewer than half
    assert 0.85 < np.mean(seen) < 0.99


def test_windows_are_the_text_around_their_starts_in_the_order_found(examples, mined):
    batch = ReadBatches(examples, mined, 20, K, CONFIG, (0,), "cpu").at(0)
    assert (batch.scores[:, :-1] > batch.scores[:, 1:]).all()
    for starts, windows in zip(batch.starts.tolist(), batch.windows.tolist(), strict=True):
        for start, ids in zip(starts, windows, strict=True):
            around = range(start - MARGIN, start + W + MARGIN)
            assert ids == [examples.ids[i] if 0 <= i < len(examples.ids) else 0 for i in around]
    assert torch.equal(batch.answers[:, :2], batch.gold[:, 0] + 1)
    assert not batch.answers[:, 2:].any()


def test_a_teacher_s_logits_are_those_of_the_windows_drawn(examples, mined):
    starts = mined[0][0]
    logits = starts[:, :, None, None].half().expand(-1, -1, READ, 2)
    batches = ReadBatches(examples, mined, 20, K, CONFIG, (0,), "cpu", [Taught(logits, torch.tensor([0.5, 1.5]))])
    batch = batches.at(0)
    assert torch.equal(batch.taught.logits[:, :, 0, 0], batch.starts.float())
    assert batch.taught.nothing.tolist() == [0.5, 1.5]


def test_agreeing_with_the_teacher_costs_least():
    torch.manual_seed(0)
    taught = Taught(torch.randn(4, K, READ, 2), torch.randn(2))
    # A window that was not found: the teacher's -6e4 and the reader's -inf.
    taught.logits[0, 2] = -6e4
    same = [
        torch.cat([taught.logits[..., i].flatten(1), taught.nothing[i].expand(4, 1)], 1).masked_fill(
            torch.tensor([[False]]), 0.0
        )
        for i in (0, 1)
    ]
    same = [logits.masked_fill(logits == -6e4, float("-inf")).requires_grad_() for logits in same]
    loss = taught_loss((same[0], same[1]), taught, MARGIN)
    loss.backward()
    assert loss.isfinite()
    assert max(logits.grad.abs().max().item() for logits in same) < 1e-6
    for _ in range(5):
        other = [logits.detach() + 0.3 * torch.randn_like(logits) for logits in same]
        assert taught_loss((other[0], other[1]), taught, MARGIN) > loss


def test_a_teacher_s_order_is_learned_by_the_scores_of_the_search(tiny_model):
    model = MambaLMHeadModel.from_pretrained(tiny_model)
    config, ids = model.searcher().config, np.random.default_rng(0).integers(3, 1000, 960)
    gold = np.array([[[7, 8]], [[200, 201]], [[400, 403]]])
    examples = Examples(ids, np.array([0, 960]), ids[gold[:, 0]], np.zeros(3, int), gold, np.tile([[0, 960]], (3, 1)))
    # There the search, too, has read just the warm-up before a window.
    starts = config.block * torch.arange(5).expand(3, -1)
    found, scores = search_book(model, torch.from_numpy(ids), torch.from_numpy(examples.questions), 29)
    scores = torch.stack([scores[i, (found[i, :, None] == starts[i]).int().argmax(0)] for i in range(3)])
    taught = Taught(torch.randn(3, 5, config.read_window, 2), torch.zeros(2))
    batch = ReadBatches(examples, [(starts, scores)], 3, 5, config, (0,), "cpu", [taught]).at(0)
    own = batch.taught.logits[:, :, config.margin : config.margin + config.window]
    order = own.amax(2).mean(-1).softmax(-1)
    expected = -(order * batch.scores.log_softmax(-1)).sum(-1).mean()
    loss = order_loss(model, model.searcher().ask(batch.questions), batch)
    torch.testing.assert_close(loss, expected, atol=2e-2, rtol=0)
    loss.backward()
    assert model.esi.search.query.weight.grad.abs().max() > 0
