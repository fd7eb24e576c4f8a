"""The MQAR experiment: what a query sees, where its answer is read, and that a tiny model with ESI learns it."""

import dataclasses

import pytest
import torch
from recall import mqar as experiment
from recall.mqar import PLAIN, WITH_ESI, Rows, Setting

from mamba_ssm.esi.reader import PAD
from mamba_ssm.training.recall.mqar import Size

VOCABULARY = 256
TINY = Setting(
    {PLAIN: 2, WITH_ESI: 80},
    rows=16,
    d_model=32,
    vocabulary=VOCABULARY,
    training=(Size(64, 4, 500),),
    testing=(Size(64, 4, 20), Size(64, 16, 20)),
)


def some_rows() -> Rows:
    return experiment.rows_of(Size(64, 8, 4), 5, VOCABULARY, "cpu")


def opened(seed: int = 0):
    """A model with ESI whose gates are open, so that what is injected shows."""
    torch.manual_seed(seed)
    model = experiment.build(WITH_ESI, TINY).eval()
    with torch.no_grad():
        model.esi.injection.gate.fill_(1.0)
        model.esi.injection.copy_gate.fill_(1.0)
    return model


def test_the_arms_are_the_same_model():
    torch.manual_seed(1)
    plain = experiment.build(PLAIN, TINY)
    torch.manual_seed(1)
    esi = experiment.build(WITH_ESI, TINY)
    common = {name: tensor for name, tensor in esi.state_dict().items() if not name.startswith("esi.")}
    assert common.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, common[name]) for name, tensor in plain.state_dict().items())
    rows = some_rows()
    with torch.no_grad():
        memory = experiment.read(esi, rows, *experiment.search(esi, rows))
        assert torch.equal(experiment.query_logits(esi, rows, memory), experiment.query_logits(plain, rows, None))


@torch.no_grad()
def test_all_queries_at_once_are_one_after_the_other_with_windows_of_their_own():
    model, rows = opened(), some_rows()
    memory = experiment.read(model, rows, *experiment.search(model, rows))
    logits = experiment.query_logits(model, rows, memory).unflatten(0, rows.queries.shape)
    for number, (ids, places) in enumerate(zip(rows.inputs, rows.queries, strict=True)):
        runs, done = [], 0
        for place, query in sorted((int(place), query) for query, place in enumerate(places)):
            one = number * len(places) + query
            mine = dataclasses.replace(
                memory, **{name: getattr(memory, name)[one, None] for name in ("ids", "states", "scores")}
            )
            runs += [(slice(done, place), None), (slice(place, place + 1), mine)]
            done = place + 1
        expected = model.forward_injected(ids[None], [*runs, (slice(done, len(ids)), None)])[0, places]
        assert logits[number] == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_the_logits_without_esi_are_the_model_s_at_the_queries():
    model, rows = experiment.build(PLAIN, TINY).eval(), some_rows()
    for number in range(len(rows.inputs)):
        expected = model(rows.inputs[number, None]).logits[0, rows.queries[number]]
        assert experiment.query_logits(model, rows.at([number]), None) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_an_answer_depends_on_nothing_after_its_query():
    model, rows = opened(), some_rows()
    place = int(rows.queries[0].sort().values[3])
    changed = rows.inputs.clone()
    changed[0, place + 1 :] = (changed[0, place + 1 :] + 7) % VOCABULARY
    before, after = (
        experiment.query_logits(model, r, experiment.read(model, r, *experiment.search(model, r)))
        for r in (rows, rows._replace(inputs=changed))
    )
    early = rows.queries[0] <= place
    assert 0 < early.sum() < len(early)
    assert torch.equal(before[: len(early)][early], after[: len(early)][early])


@torch.no_grad()
def test_a_query_is_shown_windows_that_end_before_it_and_a_copy_of_its_key_in_the_filler_too():
    model = opened()
    # The key 5 stands with its value 40 at 0, as filler at 8, and is asked at 12; it comes again after that.
    ids = torch.tensor([5, 40, 6, 41, 7, 42, 8, 43, 5, 50, 60, 61, 5, 0, 5, 33])
    ids = torch.cat([ids, torch.full((48,), 62)])[None]
    rows = Rows(ids, torch.tensor([[12, 14]]), torch.tensor([[40, 40]]))
    memory = experiment.read(model, rows, *experiment.search(model, rows))
    windows = {tuple(window) for window in memory.ids[0].tolist()}
    assert {(5, 40, 6, 41), (8, 43, 5, 50), (5, 50, 60, 61)} <= windows
    assert windows <= {tuple(ids[0, start : start + 4].tolist()) for start in range(0, 9, 2)}
    few = experiment.Rows(ids, torch.tensor([[6]]), torch.tensor([[40]]))
    memory = experiment.read(model, few, *experiment.search(model, few))
    assert (memory.scores[0] > float("-inf")).tolist() == [True, True, False, False]
    assert (memory.ids[0, 2:] == PAD).all()


def test_answers_are_counted_at_the_queries():
    """A head that always says one token is right where that is the value."""
    model, rows = experiment.build(PLAIN, TINY).eval(), some_rows()
    token = int(rows.values[1, 2])
    model.lm_head.register_forward_hook(lambda *_: torch.eye(VOCABULARY)[token].expand(rows.queries.numel(), 1, -1))
    assert experiment.correct(model, rows) == (int((rows.values == token).sum()), None)


def test_the_windows_with_a_pair_are_right():
    model, rows = opened(), some_rows()
    _, scores = experiment.search(model, rows)
    right = experiment.right_windows(scores, 8, model.esi.config).unflatten(0, rows.queries.shape)
    windows = rows.inputs.unfold(1, 4, 2)
    for number in range(len(rows.inputs)):
        for query, value in enumerate(rows.values[number].tolist()):
            key = int(rows.inputs[number, rows.queries[number, query]])
            held = [w[:2] == [key, value] or w[2:] == [key, value] for w in windows[number].tolist()]
            # A pair may be in the filler by chance, which nothing is trained to find.
            assert right[number, query].tolist() == held[:8] + [False] * len(held[8:])


def test_esi_learns_and_finds_more_pairs_than_it_was_trained_on():
    row = experiment.run(TINY, WITH_ESI, 1e-2, seed=0, development=False)
    assert [size["queries"] for size in row["sizes"]] == [80, 320]
    assert all(size["correct"] >= 0.95 * size["queries"] for size in row["sizes"])
    assert all(size["correct"] <= size["queries"] >= size["found"] for size in row["sizes"])
    summary = experiment.summary([row, row])
    assert summary[1]["mean"] == row["sizes"][1]["correct"] / 320
    assert summary[1]["by_seed"][0]["interval_95"][0] < summary[1]["mean"]


def test_a_run_whose_loss_is_not_finite_answers_nothing():
    row = experiment.run(TINY, PLAIN, float("inf"), seed=0, development=True)
    assert "loss" in row["failed"]
    assert experiment.mean_accuracy(row) == 0.0
    assert experiment.summary([row])[0]["by_seed"][0]["interval_95"][1] > 0.0
