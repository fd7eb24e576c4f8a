"""The recipes esi and qa on the engine: what they learn and write, killed, resumed, and in several processes."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from runs import byte_tokenizer, has_steps, killed, launched, metrics, start, train
from safetensors.torch import load_file

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.esi import reader
from mamba_ssm.models.config_mamba import MambaConfig

STEPS = {"search": 3, "reader": 9, "language": 3}
SETTINGS = f"""
steps: {sum(STEPS.values())}
batch: 6
lr: 1.0e-2
precision: fp32
log_every: 1
save_every: 2
eval_every: 3
device: cpu
"""
ESI = {"n_enc": 1, "d_search": 16, "d_read": 16, "n_read": 1, "segment": 96, "warmup": 32, "window": 32, "d_state": 4}
BOOKS, TOWNS = 12, 20  # of a book
NEAR = {"rel": 1e-3}  # fp32, summed in another order, over some steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes, books of towns, and a question about every fourth."""
    folder = tmp_path_factory.mktemp("answering")
    torch.manual_seed(0)
    config = MambaConfig(d_model=16, n_layer=2, vocab_size=257, ssm_cfg={"d_state": 4}, esi=ESI)
    MambaLMHeadModel(config).save_pretrained(folder / "model")
    byte_tokenizer().save(folder / "model")
    rows = []
    for book in range(BOOKS):
        towns = range(book * TOWNS, (book + 1) * TOWNS)
        text = "\n".join(f"Town {n} was founded in {1200 + 3 * n}." for n in towns)
        (folder / f"{book}.txt").write_text(text, encoding="utf-8")
        rows += [
            {"book": f"{book}.txt", "question": f"When was Town {n} founded?", "answer": f"{1200 + 3 * n}"}
            for n in towns[::4]
        ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def config(folder):
    path = folder / "settings.yaml"
    path.write_text(f"{SETTINGS}model: {folder / 'model'}\nquestions: {folder / 'questions.jsonl'}\n", encoding="utf-8")
    return path


def followed(config, out, *more, recipe="esi"):
    result = train(config, out, *more, recipe=recipe)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return out


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Runs that nothing disturbed, by recipe."""
    return {recipe: followed(config, tmp_path_factory.mktemp(recipe) / "run", recipe=recipe) for recipe in WRITTEN}


WRITTEN = {"esi": "esi.safetensors", "qa": "model.safetensors"}
NAMES = ("loss", "span", "search", "answer", "plain", "held_out_loss")


def losses(out):
    """Of each stage and step, all parts."""
    found = {}
    for stage in STEPS:
        for step, line in metrics(out / stage).items():
            found[stage, step] = [line[name] for name in NAMES if name in line]
    return found


def same(out, whole, recipe):
    assert losses(out) == losses(whole)
    for name in ("reader/found.safetensors", WRITTEN[recipe]):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(out) == metrics(whole)


def near(out, whole, stages=tuple(STEPS)):
    wanted, found = losses(whole), losses(out)
    assert found.keys() == wanted.keys()
    for stage, step in found:
        if stage in stages:
            assert found[stage, step] == pytest.approx(wanted[stage, step], **NEAR), (stage, step)


def one_line(result):
    assert result.exit_code == 1
    return [line for line in result.stderr.splitlines() if line.startswith("mamba-esi: ")][-1]


@pytest.mark.parametrize("recipe", WRITTEN)
def test_every_stage_is_told(whole, recipe):
    out = whole[recipe]
    assert list(losses(out)) == [(stage, step) for stage, steps in STEPS.items() for step in range(1, steps + 1)]
    read = metrics(out / "reader")
    assert read[1]["loss"] == pytest.approx(read[1]["span"] + read[1]["search"])
    assert "search" not in read[2]
    assert [step for step in read if "held_out_loss" in read[step]] == [3, 6, 9]
    assert 0 <= metrics(out)[15]["held_out_recall@1"] <= metrics(out)[15]["held_out_recall@8"] <= 1
    assert 0 <= metrics(out)[15]["held_out_exact_match"] <= metrics(out)[15]["held_out_f1"] <= 1


def test_of_a_frozen_checkpoint_nothing_but_esi_learns(whole, folder):
    before = MambaLMHeadModel.from_pretrained(folder / "model").state_dict()
    after = MambaLMHeadModel.from_pretrained(folder / "model", esi=whole["esi"]).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("esi.") for name in changed)
    assert {"esi.search.query.weight", "esi.reader.span.weight", "esi.injection.gate"} <= changed


def test_end_to_end_all_of_it_learns(whole, folder):
    before, after = (load_file(path / "model.safetensors") for path in (folder / "model", whole["qa"]))
    assert before.keys() == after.keys()
    # Calibration is no parameter.
    stays = {name for name in before if torch.equal(before[name], after[name])}
    assert stays == {"esi.reader.calibration", "esi.reader.least_score"}


@pytest.mark.parametrize(("recipe", "stage", "steps"), [("esi", "reader", 3), ("qa", "language", 1)])
def test_a_killed_run_goes_on_to_the_last_bit(config, whole, tmp_path, recipe, stage, steps):
    out = tmp_path / "run"
    _, status = killed(start(config, out, recipe=recipe), has_steps(out / stage, steps))
    assert status == -signal.SIGKILL
    assert not (out / WRITTEN[recipe]).exists()
    same(followed(config, out, "--resume", recipe=recipe), whole[recipe], recipe)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_time(config, whole, tmp_path, seed):
    """Among them, while the search is run for the reader, or between two stages."""
    out, rng = tmp_path / "run", random.Random(seed)
    recipe = rng.choice(list(WRITTEN))
    for stage in rng.sample(list(STEPS), 2):
        killed(start(config, out, "--resume", recipe=recipe), has_steps(out / stage, rng.randint(1, STEPS[stage])))
    same(followed(config, out, "--resume", recipe=recipe), whole[recipe], recipe)


def test_a_run_that_is_told_to_end_saves_its_step_first(config, whole, tmp_path):
    out = tmp_path / "run"
    said, status = killed(start(config, out, recipe="esi"), has_steps(out / "reader", 2), signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert said.splitlines()[-1].startswith("stopped by SIGTERM")
    same(followed(config, out, "--resume"), whole["esi"], "esi")


def test_a_finished_run_writes_what_it_learned_again(config, whole, tmp_path):
    """As after a kill between the last checkpoint and the result."""
    shutil.copytree(whole["esi"], tmp_path / "run")
    (tmp_path / "run" / "esi.json").unlink()
    (tmp_path / "run" / "esi.safetensors").unlink()
    same(followed(config, tmp_path / "run", "--resume"), whole["esi"], "esi")


@pytest.fixture(scope="module")
def undropped(config, tmp_path_factory):
    """Runs of one process without dropout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "DROPOUT", 0.0)
        return {recipe: followed(config, tmp_path_factory.mktemp("one") / "run", recipe=recipe) for recipe in WRITTEN}


UNDROPPED = (str(Path(__file__).with_name("without_dropout.py")),)


def test_two_processes_search_as_one_does(config, undropped, tmp_path):
    out = launched(config, tmp_path / "run", command=UNDROPPED, recipe="esi")
    near(out, undropped["esi"], ["search"])
    # What was found next may differ: of windows that fit alike, rounding decides.
    found, wanted = (load_file(run / "reader" / "found.safetensors") for run in (out, undropped["esi"]))
    assert (found["0.0.starts"] == wanted["0.0.starts"]).float().mean() > 0.8


@pytest.mark.parametrize("recipe", WRITTEN)
def test_two_processes_read_and_say_what_one_does(config, undropped, tmp_path, recipe):
    """From what one found."""
    out = tmp_path / "run"
    shutil.copytree(undropped[recipe] / "search", out / "search")
    (out / "reader").mkdir()
    shutil.copy(undropped[recipe] / "reader" / "found.safetensors", out / "reader")
    launched(config, out, "--resume", command=UNDROPPED, recipe=recipe)
    near(out, undropped[recipe])


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", WRITTEN)
def test_a_gpu_learns_what_a_cpu_does(config, undropped, tmp_path, monkeypatch, recipe):
    """From what the CPU found."""
    monkeypatch.setattr(reader, "DROPOUT", 0.0)
    shutil.copytree(undropped[recipe] / "search", tmp_path / "search")
    (tmp_path / "reader").mkdir()
    shutil.copy(undropped[recipe] / "reader" / "found.safetensors", tmp_path / "reader")
    followed(config, tmp_path, "--resume", "--device", "cuda", recipe=recipe)
    wanted, found = losses(undropped[recipe]), losses(tmp_path)
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], rel=2e-2), step


def test_other_questions_or_another_recipe_are_no_run_to_resume(config, folder, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole["esi"], out)
    assert "backbone_rate None and not 0.1" in one_line(train(config, out, "--resume", recipe="qa"))
    assert "batch 6 and not 4" in one_line(train(config, out, "--resume", "--batch", 4, recipe="esi"))
    rows = (folder / "questions.jsonl").read_text().splitlines()
    other = folder / "fewer.jsonl"
    other.write_text("\n".join(rows[:-1]))
    assert "other data" in one_line(train(config, out, "--resume", "--questions", other, recipe="esi"))


def test_what_was_found_is_checked_when_it_is_read_again(config, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole["esi"], out)
    found = out / "reader" / "found.safetensors"
    found.write_bytes(found.read_bytes()[:-8])
    said = one_line(train(config, out, "--resume", recipe="esi"))
    assert "found.safetensors is damaged" in said
    found.unlink()
    same(followed(config, out, "--resume"), whole["esi"], "esi")


def test_of_few_questions_none_is_held_out(config, folder, tmp_path):
    few = folder / "few.jsonl"
    few.write_text("\n".join((folder / "questions.jsonl").read_text().splitlines()[:12]))
    result = train(config, tmp_path / "run", "--questions", few, "--steps", 3, recipe="esi")
    assert result.exit_code == 0
    assert "too few questions to hold some out" in result.stderr
    assert "training on 12 questions" in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert all("held_out_loss" not in line for line in metrics(tmp_path / "run" / "reader").values())
