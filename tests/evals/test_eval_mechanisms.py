"""The compared mechanisms: each runs and learns, is measured as it would answer, and no run is made twice."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from mechanisms import arms, measure, rank, results, run, table
from mechanisms.ablations import ABLATIONS
from mechanisms.arms import ARMS
from mechanisms.speaking import answer_logits, said
from mechanisms.texts import DEVELOPMENT, TESTS, Texts, load, save, training_batches
from safetensors.torch import save_file

from mamba_ssm.training.loop import train
from mamba_ssm.training.reading import IGNORE, answer_sequences

V, D, L = 256, 32, 192
SMALL = {
    "d_state": 4,
    "d_search": 32,
    "d_read": 32,
    "n_read": 1,
    "n_heads": 2,
    "segment": 64,
    "warmup": 16,
    "window": 16,
    "top_k": 4,
}
EVERY = ARMS | ABLATIONS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setitem(arms.ESI_SIZES, name, value)


@pytest.fixture(scope="module")
def borrowed():
    table = torch.randn(V, D, generator=torch.Generator().manual_seed(0)) / D**0.5
    return {"table": table, "idf": torch.ones(V)}


def facts(n=8, length=L, seed=0, ranked=False):
    """Random texts, in each four facts of two tokens that name it and two that are asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(128, V, (n, length), generator=generator)
    questions, answers, gold = torch.zeros(n, 4, 32), torch.zeros(n, 4, 15), torch.zeros(n, 4, 2)
    for text in range(n):
        places = 8 * torch.randperm(length // 8 - 2, generator=generator)[:4] + 1
        names = torch.randperm(56, generator=generator)[:8].view(4, 2) + 8
        told = torch.randint(64, 128, (4, 2), generator=generator)
        for i, place in enumerate(places.tolist()):
            ids[text, place : place + 4] = torch.cat([names[i], told[i]])
            questions[text, i, :2], answers[text, i, :2] = names[i], told[i]
            gold[text, i] = torch.tensor([place + 2, place + 3])
    rankings = {}
    if ranked:
        order = torch.rand(n, 4, length // 8 - 1, generator=generator).argsort(-1)
        rankings = {"bm25": order, "minilm": order.flip(-1), "fusion": order}
    return Texts(ids, questions.long(), answers.long(), gold.long(), rankings)


def everything(texts):
    return next(texts.batches(1 << 20))


def outcome(arm, batch, in_use=False):
    arm.eval()
    with torch.no_grad():
        return {name: parts for name, *parts in measure.outcomes(arm, batch, in_use)}


@pytest.mark.parametrize("name", EVERY)
def test_every_arm_answers_and_a_step_lessens_its_loss(name, borrowed):
    texts = facts(4)
    if name.startswith("windows_of"):  # they need longer segments
        arms.ESI_SIZES["segment"], arms.ESI_SIZES["warmup"], texts = 256, 64, facts(4, 960)
    torch.manual_seed(0)
    arm, batch = EVERY[name](borrowed).eval(), everything(texts)
    with torch.no_grad():
        assert arm.logits(batch).shape == (16, 16, V)
    frozen = {key for key, factor in arm.slow.items() if factor == 0}
    before = {key: value.detach().clone() for key, value in arm.named_parameters()}

    def total():
        return torch.stack(list(arm.losses(batch).values())).sum()

    first = total().item()
    assert math.isfinite(first)
    train(arm, lambda _: arm.losses(batch), 2, 1e-3, warmup=1, slow=arm.slow, log=lambda _: None)
    with torch.no_grad():
        assert total().item() < first
    moved = {key for key, value in arm.named_parameters() if not torch.equal(value, before[key])}
    assert not frozen & moved
    assert "model.backbone.embedding.weight" in moved


def test_the_arms_have_as_many_parameters_as_near_as_can_be(monkeypatch):
    monkeypatch.setattr(arms, "ESI_SIZES", {"n_enc": 1, "d_state": 8, "d_read": 128, "n_read": 2})
    shape = {"table": torch.zeros(32768, 256), "idf": torch.ones(32768)}
    counts = [sum(p.numel() for p in make(shape).parameters()) for make in ARMS.values()]
    assert max(counts) < 1.04 * min(counts)


def test_what_is_said_is_what_the_package_trains_on():
    batch = everything(facts(2))
    ours, (ids, targets) = said(batch.questions, batch.answers), answer_sequences(batch.questions, batch.answers)
    width = ids.shape[1]
    assert ours.ids.shape[1] % 8 == 0
    assert torch.equal(ours.ids[:, :width], ids)
    assert not ours.ids[:, width:].any()
    placed = torch.full_like(ours.ids, IGNORE).scatter(1, ours.at, ours.targets)
    assert torch.equal(placed[:, :width], targets)


@pytest.mark.parametrize("name", ["plain", "hybrid_1", "hybrid_2"])
def test_a_text_that_was_read_once_is_the_text_before_each_question(name, borrowed):
    arm, batch = ARMS[name](borrowed).eval(), everything(facts(3))
    asked = said(batch.questions, batch.answers)
    with torch.no_grad():
        whole = arm.model(torch.cat([batch.texts[batch.text], asked.ids], 1), return_states=True).logits[:, L:]
        expected = whole.gather(1, asked.at[..., None].expand(-1, -1, V))
        torch.testing.assert_close(arm.logits(batch), expected, atol=1e-3, rtol=1e-3)
        arm.seen = 64
        recent = arm.model(torch.cat([batch.texts[batch.text, -64:], asked.ids], 1), return_states=True).logits[:, 64:]
        expected = recent.gather(1, asked.at[..., None].expand(-1, -1, V))
        torch.testing.assert_close(arm.logits(batch), expected, atol=1e-3, rtol=1e-3)


def test_right_is_what_greedy_decoding_says(borrowed):
    torch.manual_seed(1)
    arm, batch = ARMS["plain"](borrowed).eval(), everything(facts(2))
    states = arm.states(batch)
    with torch.no_grad():
        answers = torch.zeros_like(batch.answers)
        for place in range(answers.shape[1]):  # decode, and take what was said for the answers
            logits = answer_logits(arm.model, said(batch.questions, answers.clamp(min=1)), states)
            answers[:, place] = logits[:, place].argmax(-1)
    ended = (answers == 0).int().cumsum(1) > 0
    answers = answers.masked_fill(ended, 0)
    has_end = ended.any(1) & (answers[:, 0] != 0)
    for given, wanted in ((answers, has_end), (answers.clamp(min=1).roll(1, 1), torch.zeros_like(has_end))):
        other = type(batch)(batch.texts, batch.questions, given, batch.text, batch.gold)
        with torch.no_grad():
            assert torch.equal(measure.right(arm.logits(other), other) & has_end, wanted)


@pytest.fixture(scope="module")
def trained(borrowed):
    torch.manual_seed(0)
    patched = arms.ESI_SIZES | SMALL
    arm = arms.ESI(arms.build(borrowed, arms.LAYERS_BESIDE_READER, patched))
    batches = training_batches([facts(256)], 8, 4, np.random.default_rng(0))
    train(arm, lambda _: arm.losses(next(batches)), 70, 1e-2, warmup=7, slow=arm.slow, log=lambda _: None)
    return arm


def test_esi_learns_to_answer_from_what_it_finds_and_not_from_what_it_does_not(trained):
    batch = everything(facts(16, seed=1, ranked=True))
    rows = outcome(trained, batch, in_use=True)
    right = {name: answered.float().mean().item() for name, (answered, _) in rows.items()}
    assert right[""] > 0.8
    assert right["oracle"] >= right[""] > right["random"]
    assert right["bm25"] < right["oracle"]  # the order given is a random one
    assert rows["oracle"][1].all()
    found = [rows["" if k == 4 else f"k={k}"][1].sum().item() for k in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert abs(right["int8"] - right["fp32"]) < 0.1


def test_the_ranks_that_are_given_decide_what_is_read(trained):
    texts = facts(4, seed=2, ranked=True)
    gold = texts.gold[..., :1] // 8  # the windows that begin there, or the last that can
    for order in texts.rankings.values():
        order[:] = gold.clamp(max=order.shape[-1] - 1)
    rows = outcome(trained, everything(texts), in_use=True)
    whole = texts.gold[..., 1].flatten() < (gold.flatten().clamp(max=L // 8 - 2) * 8 + 16)
    assert torch.equal(rows["bm25"][1], whole)


def test_needles_lie_where_gold_says_and_bm25_finds_them():
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    from mechanisms import prepare

    from mamba_ssm.book.engine import DEFAULT_MODEL
    from mamba_ssm.text.tokenizer import Tokenizer
    from mamba_ssm.training.recall.filler import Filler

    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    filler = Filler.of_paragraphs([f"Paragraph {i} speaks of {i * 7} trees. It ends." for i in range(300)], tokenizer)
    texts = prepare.needle_texts(filler, "test", 2016, 3, "a seed")
    assert texts.ids.shape == (3, 2016)
    assert texts.questions.shape == (3, 8, 32)
    for ids, answers, gold in zip(texts.ids, texts.answers, texts.gold, strict=True):
        for answer, (first, last) in zip(answers.tolist(), gold.tolist(), strict=True):
            assert answer[: last + 1 - first] == ids[first : last + 1].tolist()
            assert not any(answer[last + 1 - first :])
    assert not (texts.answers.flatten(0, 1) == 0).all(1).any()
    order = prepare.bm25(texts.ids[0], texts.questions[0], tokenizer)
    assert order.sort(1).values.tolist() == [list(range(2016 // 32 - 1))] * 8
    first, last = texts.gold[0].split(1, 1)
    assert ((order[:, :4] * 32 <= first) & (last < order[:, :4] * 32 + 64)).any(1).all()


def test_sets_are_read_as_they_were_saved(tmp_path):
    path = tmp_path / "texts.safetensors"
    sets = {"a": facts(3), "b": facts(2, ranked=True)}
    save(sets, path)
    ranks = tmp_path / "ranks.safetensors"
    save_file({"a/minilm": torch.ones(3, 4, 5, dtype=torch.uint16)}, ranks)
    again = load(path, "cpu", ranks)
    for name, texts in sets.items():
        for part in ("ids", "questions", "answers", "gold"):
            assert torch.equal(getattr(again[name], part).long(), getattr(texts, part))
    assert torch.equal(again["b"].rankings["bm25"].long(), sets["b"].rankings["bm25"])
    assert again["a"].rankings["minilm"].shape == (3, 4, 5)


def test_fusion_prefers_what_both_searches_rank_high():
    texts = Texts(torch.zeros(1, 160), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    vectors = iter([torch.eye(4), torch.tensor([[0.1, 0.9, 0.8, 0.2]])])  # the windows', then the question's
    ranked = rank.ranked(
        Texts(texts.ids, texts.questions, texts.answers, texts.gold, {"bm25": torch.tensor([[[2, 3, 1, 0]]])}),
        type("Tokenizer", (), {"decode": lambda self, ids: ""})(),
        lambda _: next(vectors),
    )
    assert ranked["minilm"].tolist() == [[[1, 2, 3, 0]]]
    assert ranked["fusion"][0, 0, 0] == 2  # second and first: 1/62 + 1/61 is the most


@pytest.fixture
def started(tmp_path, monkeypatch, borrowed):
    """Run run.py on small texts -> its records."""
    sets = {name: facts(8, seed=i) for i, name in enumerate(("needles", "articles", DEVELOPMENT))}
    sets |= {name: facts(2, seed=9, ranked=True) for name in TESTS}
    save(sets, tmp_path / "texts.safetensors")
    save_file({f"{n}/bm25": sets[n].rankings["bm25"].to(torch.uint16) for n in TESTS}, tmp_path / "r.safetensors")
    save_file(borrowed, tmp_path / "table.safetensors")

    def start(*more):
        out = tmp_path / "out.jsonl"
        files = {"data": "texts", "rankings": "r", "table": "table"}
        given = [part for name, file in files.items() for part in (f"--{name}", str(tmp_path / f"{file}.safetensors"))]
        recipe = ["--texts", "2", "--per-text", "2", "--device", "cpu", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["run.py", *given, *recipe, *more])
        status = run.main()
        return status, out, run.read_records(out)

    return start


def test_a_run_that_stands_in_the_results_is_not_made_again(started, monkeypatch):
    with pytest.raises(SystemExit, match="run it first"):
        started("--steps", "1", "--arms", "no_copying")
    status, out, first = started("--steps", "1", "--arms", "esi", "plain")
    assert status == 0
    assert [(r["arm"], r["seed"]) for r in first] == [(arm, s) for arm in ("esi", "plain") for s in (0, 0, 0, 1, 2)]
    best = min(first[:3], key=lambda r: r["development_loss"])["rate"]
    assert first[3]["rate"] == first[4]["rate"] == best
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:4] + lines[5:]))  # as if one was not reached
    status, _, second = started("--steps", "1", "--arms", "esi", "plain", "no_copying")
    assert second[:9] == first[:4] + first[5:]
    assert [(r["arm"], r["rate"], r["seed"]) for r in second[9:]] == [("esi", best, 2), ("no_copying", best, 0)]
    same = ("development_loss", "rows", "parameters")
    assert all(second[9][key] == first[4][key] for key in same)
    monkeypatch.setattr(run, "run", lambda *_: pytest.fail("a run was made again"))
    assert started("--steps", "1", "--arms", "esi", "plain", "no_copying")[0] == 0
    assert started("--steps", "1", "--arms", "hybrid_1", "--seconds", "0")[0] == 1
    with pytest.raises(SystemExit, match="another recipe"):
        started("--steps", "2", "--arms", "esi")


def record(arm, rate, seed, loss, right, **rows):
    parts = {"right": right, "found": right}
    every = {"": parts, **{name: {"right": bits} for name, bits in rows.items()}}
    return {
        "arm": arm,
        "rate": rate,
        "seed": seed,
        "development_loss": loss,
        "parameters": 1234,
        "rows": {name: dict.fromkeys(TESTS, part) for name, part in every.items()},
        "recipe": {"steps": 1, "texts": 2, "per_text": 3},
        "provenance": {"hardware": {"gpu": None}},
    }


RECORDS = [
    record("plain", 1e-3, 0, 2.0, "1111"),
    record("plain", 2e-3, 0, 1.0, "1000", last_4k="1100"),
    record("plain", 4e-3, 0, 3.0, "0000"),
    record("plain", 2e-3, 1, 9.0, "1100", last_4k="1100"),
    *(record("esi", rate, 0, rate, "1110", random="0000") for rate in run.RATES),
    record("no_copying", 1e-3, 0, 0.0, "0100"),
]


def test_the_table_is_of_the_best_rate_and_all_its_seeds():
    plain = results.share(RECORDS, "plain", "needles, 4k")
    assert (plain.hits, plain.n, plain.by_seed) == (3, 8, (0.25, 0.5))
    assert results.share(RECORDS, "esi/oracle", "needles, 4k") is None
    text = "\n".join(table.section(RECORDS))
    assert "| plain Mamba | 1,234 | 0.002 | 5.00 | 0.375 [" in text
    assert "0.25 to 0.50" in text
    assert "| no copying, injection alone | 0.250 [" in text
    assert "state injection |" not in text  # not run
    for paper in ("2504.16795", "2510.17196", "2504.03101", "2505.07793", "2507.02782", "2410.07145"):
        assert f"(https://arxiv.org/abs/{paper})" in text
    for block in text.split("\n\n"):
        widths = {row.count("|") for row in block.splitlines() if row.startswith("|")}
        assert len(widths) <= 1


def test_everything_that_can_be_run_has_a_row_in_the_table():
    rows = {row.partition("/")[0] for row in (*results.MECHANISMS, *results.CHANGES)}
    assert rows == set(EVERY)


def test_plots_are_drawn_from_the_same_results(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from mechanisms import plots

    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    monkeypatch.setattr(
        sys, "argv", ["plots.py", "--results", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "assets")]
    )
    assert plots.main() == 0
    drawn = {path.name: path.read_text() for path in (tmp_path / "assets").iterdir()}
    assert drawn.keys() == {f"mechanisms_{name}.svg" for name in ("by_length", "by_k", "ablations")}
    assert "plain Mamba" in drawn["mechanisms_by_length.svg"]
    assert "no copying, injection alone" in drawn["mechanisms_ablations.svg"]
    assert max(map(len, drawn.values())) < 100_000
