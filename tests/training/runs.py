"""Runs of ``mamba-esi train`` on few texts of bytes: in this process, and in processes that can be killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from typer.testing import CliRunner

from mamba_ssm.cli.main import app
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.corpus import write_corpus

STEPS = 12
SETTINGS = f"""
steps: {STEPS}
new: {{d_model: 16, n_layer: 2, d_state: 4}}
length: 48
rows: 8
lr: 1.0e-2
warmup: 3
precision: fp32
log_every: 1
save_every: 4
eval_every: 6
eval_batches: 2
device: cpu
"""


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(inner)


def make_corpus(folder, tokenizer, seed=0):
    """A corpus of short texts of few words, written to folder/corpus."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(("red", "green", "blue", "one"), k=rng.randint(3, 40))) for _ in range(200)]
    path = Path(folder) / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    write_corpus([path], tokenizer, Path(folder) / "corpus")
    return Path(folder) / "corpus"


def settings(folder, corpus):
    """A YAML file for that corpus."""
    path = Path(folder) / "lm.yaml"
    path.write_text(SETTINGS + f"data: {corpus}\n", encoding="utf-8")
    return path


def train(config, out, *more, recipe="lm"):
    """The command, in this process."""
    arguments = ["train", recipe, "--config", config, "--out", out, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def start(config, out, *more, launcher=(sys.executable,), command=("-m", "mamba_ssm.cli"), recipe="lm"):
    """The command, in a process of its own, or in some that a launcher starts."""
    arguments = [*launcher, *command, "train", recipe, "--config", config, "--out", out, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(a) for a in arguments], stderr=subprocess.PIPE, text=True, env=environment)


def killed(process, when, number=signal.SIGKILL):
    """Send a signal to a run once ``when`` is true; what it said, and its exit status."""
    try:
        while not when() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        return process.communicate(timeout=60)[1], process.returncode
    finally:
        process.kill()


def has_steps(out, count):
    """Whether so many lines of metrics are there, now and later."""
    path = out / "metrics.jsonl"
    return lambda: path.is_file() and path.read_bytes().count(b"\n") >= count


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", 2)


def launched(config, out, *more, launcher=TORCHRUN, **how):
    """A run of two processes, or of a launcher's own number."""
    process = start(config, out, *more, launcher=[sys.executable, "-m", *launcher], **how)
    try:
        said = process.communicate(timeout=280)[1]
    finally:
        process.terminate()  # a launcher then ends its processes, too
    assert process.returncode == 0, said
    return out


def metrics(out):
    """The lines of metrics.jsonl by step; of a step that was taken again after a kill, the last one."""
    lines = (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["step"]: line for line in map(json.loads, lines)}


def losses(out):
    """Of each step, and of the held-out text where it was evaluated."""
    names = ("loss", "held_out_loss")
    return {step: [line[name] for name in names if name in line] for step, line in metrics(out).items()}
