"""Answering by generation, against what the model says when it reads everything in one call."""

import math

import pytest
import torch

from mamba_ssm.esi.replay import Context, question_likelihood
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

END = 3
NEWLINE = 5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MambaLMHeadModel(
        MambaConfig(d_model=16, n_layer=2, vocab_size=61), initializer_cfg={"initializer_range": 1.0}
    )


def decode(ids):
    return "".join("\n" if i == NEWLINE else f"<{i}>" for i in ids)


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :, :61].log_softmax(-1)


def test_likelihood_is_that_of_each_prompt_alone(model):
    windows = [[7, 8, 9], [10], [11, 12, 13, 14, 15]] * 4
    lead, question = [20, 21], [30, 31, 32]
    expected = []
    for window in windows:
        table = log_probabilities_padded(model, window + lead + question)
        at = len(window) + len(lead) - 1
        expected.append(sum(float(table[at + i, token]) for i, token in enumerate(question)) / len(question))
    assert question_likelihood(model, windows, lead, question) == pytest.approx(expected, abs=1e-4)


def log_probabilities_padded(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("chunk", [1, 5, 2048])
def test_generation_after_a_text_read_in_chunks(model, monkeypatch, chunk):
    monkeypatch.setattr("mamba_ssm.esi.replay.CHUNK", chunk)
    text, prompt = list(range(10, 40)), [50, 51]
    context = Context(model)
    context.read(torch.tensor(text[:13]))
    context.read(torch.tensor(text[13:]))
    ids, total = text + prompt, 0.0
    for _ in range(6):
        table = log_probabilities(model, ids)[-1]
        token = int(table.argmax())
        total += float(table[token])
        ids.append(token)
    said = ids[len(text) + len(prompt) :]
    assert END not in said
    assert NEWLINE not in said
    answer, confidence = context.fork().generate(prompt, 6, END, decode)
    assert answer == decode(said)
    assert confidence == pytest.approx(math.exp(total / 6), rel=1e-3)
    assert context.fork().generate(prompt, 6, END, decode)[0] == answer, "a fork must leave the context as it was"


def test_generation_ends(model):
    prompt = [50, 51]
    first = int(log_probabilities(model, prompt)[-1].argmax())
    assert Context(model).generate(prompt, 6, first, decode) == ("", 0.0)
    text, _ = Context(model).generate(prompt, 6, END, lambda ids: "Said.\nMore" if len(list(ids)) > 1 else "Said.")
    assert text == "Said."
