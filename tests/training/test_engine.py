"""A run that is killed, stopped, short of room or of another number of processes goes on as if nothing had been."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

import torch
from runs import (
    STEPS,
    byte_tokenizer,
    has_steps,
    killed,
    launched,
    losses,
    make_corpus,
    metrics,
    settings,
    start,
    train,
)

from mamba_ssm.training import checkpoints

NEAR = {"rel": 1e-4}  # fp32, summed in another order, over some steps


def checkpoint_names(out):
    return sorted(path.name for path in (out / checkpoints.FOLDER).iterdir())


def one_line(result):
    """What a run that failed said, after the settings that it began with."""
    assert result.exit_code == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("mamba-esi: ")]
    assert said == result.stderr.splitlines()[-1:]
    return said[0]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return settings(folder, make_corpus(folder, byte_tokenizer()))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = train(config, out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return out


def stopped_at(step, run, out):
    """A folder as a run leaves it that was killed after its checkpoint of that step."""
    name = f"{checkpoints.FOLDER}/step-{step:06d}"
    shutil.copytree(run / name, out / name)
    return out


def same(out, whole, since=0):
    wanted = {step: loss for step, loss in losses(whole).items() if step > since}
    assert {step: loss for step, loss in losses(out).items() if step > since} == wanted
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def near(out, whole, since=0):
    wanted, found = losses(whole), losses(out)
    assert list(found) == list(range(since + 1, STEPS + 1))
    for step in found:
        assert found[step] == pytest.approx(wanted[step], **NEAR)


def test_the_loss_falls_and_all_is_written(whole):
    lines = metrics(whole)
    assert list(lines) == list(range(1, STEPS + 1))
    assert lines[STEPS]["loss"] < lines[1]["loss"] - 0.5
    assert [step for step in lines if "held_out_perplexity" in lines[step]] == [6, 12]
    assert checkpoint_names(whole) == ["step-000004", "step-000008", "step-000012"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in whole.iterdir()}


def test_a_killed_run_goes_on_to_the_last_bit(config, whole, tmp_path):
    _, status = killed(start(config, tmp_path / "run"), has_steps(tmp_path / "run", 6))
    assert status == -signal.SIGKILL
    assert train(config, tmp_path / "run", "--resume").exit_code == 0
    same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_time(config, whole, tmp_path, seed):
    """Among them, while a checkpoint is written or an old one removed: there is one after every step."""
    out, rng = tmp_path / "run", random.Random(seed)
    for _ in range(3):
        lines = out / "metrics.jsonl"
        before = lines.read_bytes().count(b"\n") if lines.is_file() else 0
        steps = has_steps(out, before + rng.randint(1, 4))
        process = start(config, out, "--save-every", 1, "--keep", 2, "--resume")
        while not steps() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
    assert train(config, out, "--resume", "--save-every", 1, "--keep", 2).exit_code == 0
    same(out, whole)
    assert checkpoint_names(out) == ["step-000011", "step-000012"]


def test_a_run_that_is_told_to_end_saves_its_step_first(config, whole, tmp_path):
    out = tmp_path / "run"
    said, status = killed(start(config, out), has_steps(out, 2), signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert said.splitlines()[-1].startswith("stopped by SIGTERM")
    assert checkpoint_names(out)[-1] == f"step-{max(metrics(out)):06d}"
    assert not (out / "model.safetensors").exists()
    taken = max(metrics(out))
    assert train(config, out, "--resume").exit_code == 0
    same(out, whole)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1)), f"not one step again after {taken}"


ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes", 1)  # of more on CPUs, it asks for MPI


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """A run of two processes that nothing disturbed."""
    return launched(config, tmp_path_factory.mktemp("two") / "run")


def test_two_processes_learn_what_one_does(two, whole):
    near(two, whole)
    assert len(list((two / "checkpoints/step-000012").glob("*.safetensors"))) == 2


def test_one_process_resumes_what_two_began(config, two, whole, tmp_path):
    out = stopped_at(4, two, tmp_path)
    assert train(config, out, "--resume").exit_code == 0
    near(out, whole, since=4)


def test_two_processes_resume_to_the_last_bit(config, two, tmp_path):
    same(launched(config, stopped_at(8, two, tmp_path), "--resume"), two, since=8)


def test_sharded_processes_resume_and_are_resumed(config, whole, tmp_path):
    """A copy in one process, then FSDP2 in two with activations computed again, then a copy in one again."""
    out = stopped_at(4, whole, tmp_path / "first")
    sharded = ["--resume", "--parallel", "fsdp2", "--checkpoint-activations", "true"]
    near(launched(config, out, *sharded), whole, since=4)
    out = stopped_at(8, out, tmp_path / "second")
    assert train(config, out, "--resume").exit_code == 0
    near(out, whole, since=8)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_gpus_learn_what_a_cpu_does(config, whole, tmp_path, parallel):
    out = launched(config, tmp_path / "run", "--device", "cuda", "--parallel", parallel)
    assert losses(out)[STEPS] == pytest.approx(losses(whole)[STEPS], rel=1e-3)
    again = launched(
        config, stopped_at(8, out, tmp_path / "again"), "--resume", "--device", "cuda", "--parallel", parallel
    )
    assert losses(again)[STEPS] == pytest.approx(losses(whole)[STEPS], rel=1e-3)


def test_accelerate_launches_it_too(config, whole, tmp_path):
    same(launched(config, stopped_at(8, whole, tmp_path), "--resume", launcher=ACCELERATE), whole, since=8)


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(config, whole, tmp_path):
    """A limit on the size of files stands in for the disk's: writing fails half-way, in the same place."""
    resource = pytest.importorskip("resource")
    out = stopped_at(4, whole, tmp_path)
    size = max(path.stat().st_size for path in (out / "checkpoints/step-000004").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        result = train(config, out, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "step-000008 cannot be written (File too large)" in one_line(result)
    assert "step-000004 is the last good checkpoint" in one_line(result)
    assert checkpoint_names(out) == ["step-000004"]
    assert train(config, out, "--resume").exit_code == 0
    same(out, whole, since=4)


def test_a_loss_that_is_not_finite_ends_the_run(config, tmp_path):
    result = train(config, tmp_path, "--lr", "1e30", "--save-every", 1)
    assert "lower the learning rate with --lr" in one_line(result)
    assert "step-000001 is the last good checkpoint" in one_line(result)
    assert checkpoint_names(tmp_path) == ["step-000001"]


def test_a_damaged_checkpoint_is_named(config, whole, tmp_path):
    out = stopped_at(8, whole, stopped_at(4, whole, tmp_path))
    (shard,) = (out / "checkpoints/step-000008").glob("*.safetensors")
    os.truncate(shard, shard.stat().st_size // 2)
    said = one_line(train(config, out, "--resume"))
    assert "step-000008 is damaged" in said
    assert "remove it" in said
    shutil.rmtree(out / "checkpoints/step-000008")
    assert train(config, out, "--resume").exit_code == 0
    same(out, whole, since=4)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (("--lr", "0.02"), "lr 0.01 and not 0.02"),
        (("--rows", "4"), "rows 8 and not 4"),
        (("--new.d-model", "32"), "'d_model': 32"),
    ],
)
def test_another_run_is_not_resumed(config, whole, tmp_path, setting, said):
    out = stopped_at(4, whole, tmp_path)
    assert said in one_line(train(config, out, "--resume", *setting))
    assert checkpoint_names(out) == ["step-000004"]


def test_other_text_is_not_learned_on_resuming(config, whole, tmp_path):
    corpus = make_corpus(tmp_path, byte_tokenizer(), seed=1)
    out = stopped_at(4, whole, tmp_path / "run")
    assert "other data" in one_line(train(config, out, "--resume", "--data", corpus))


def test_a_folder_with_a_run_is_not_overwritten(config, whole):
    assert "go on with --resume" in one_line(train(config, whole))


def test_what_may_differ_on_resuming(config, whole, tmp_path):
    """Parts of a step, and how often things are written; the rows are the same."""
    out = stopped_at(4, whole, tmp_path)
    free = ["--accumulate", 4, "--checkpoint-activations", "true", "--save-every", 5, "--keep", 1]
    assert train(config, out, "--resume", *free).exit_code == 0
    near(out, whole, since=4)
    assert checkpoint_names(out) == ["step-000012"]


def test_a_finished_run_writes_its_model_again(config, whole, tmp_path):
    """As after a kill between the last checkpoint and the model."""
    out = stopped_at(12, whole, tmp_path)
    assert train(config, out, "--resume").exit_code == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_tracker_is_given_what_is_measured(config, tmp_path):
    pytest.importorskip("tensorboardX")
    assert train(config, tmp_path, "--steps", 2, "--tracker", "tensorboard").exit_code == 0
    assert any(b"held_out_perplexity" in events.read_bytes() for events in Path(tmp_path).rglob("*tfevents*"))


def test_a_tracker_that_is_not_there_is_named(config, tmp_path):
    assert "pip install comet_ml" in one_line(train(config, tmp_path, "--tracker", "comet_ml"))
    assert torch.distributed.is_initialized() is False
