"""Texts that are decoded together come out as if each were alone."""

import random

import pytest
import torch

from mamba_ssm.models.batching import PROMPT_TOKENS, Batch, Continuation, Sampling
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.modules.block import ROWS_OF_A_STEP

VOCABULARY = 83


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MambaConfig(d_model=24, n_layer=3, vocab_size=VOCABULARY, ssm_cfg={"d_state": 4})
    model = MambaLMHeadModel(config).eval()
    model.lm_head.weight.data *= 40  # so that a text has likely tokens, and unlikely ones
    return model


def prompt(seed, length):
    return random.Random(seed).choices(range(VOCABULARY), k=length)


def finish(batch, texts):
    """All tokens of the texts, which are in the batch."""
    made = {text: [] for text in texts}
    while len(batch):
        for text, token in batch.step():
            made[text].append(token)
    return [made[text] for text in texts]


def alone(model, ids, sampling):
    batch = Batch(model, 2)  # with a single slot there are no neighbours to be independent of
    text = Continuation(ids, sampling)
    batch.add(text)
    return finish(batch, [text])[0]


def test_greedy_tokens_are_those_of_generate(model):
    ids = prompt(1, 20)
    got = [token.id for token in alone(model, ids, Sampling(max_tokens=30))]
    want = model.generate(torch.tensor([ids]), max_length=50)[0, 20:].tolist()
    assert got == want


def test_a_text_does_not_depend_on_its_neighbours_to_the_last_bit(model):
    """Texts of all kinds join at random steps and leave at random ones; log-probabilities are compared exactly."""
    slots = ROWS_OF_A_STEP["cpu"] + 5  # more than are decoded in one call
    chance = random.Random(0)
    wanted = []
    for i in range(40):
        length = PROMPT_TOKENS + 3 if i % 20 == 0 else chance.choice([1, 2, 7, 60])
        temperature, top_p = chance.choice([0.0, 0.7, 1.3]), chance.choice([1.0, 0.8])
        sampling = Sampling(chance.randrange(10, 30), temperature, top_p, seed=i, top_logprobs=3)
        wanted.append((prompt(i, length), sampling))
    expected = [alone(model, *pair) for pair in wanted]
    batch, waiting = Batch(model, slots), [Continuation(*pair) for pair in wanted]
    texts, made = list(waiting), {text: [] for text in waiting}
    most = 0
    while waiting or len(batch):
        while waiting and len(batch) < batch.slots and chance.random() < 0.9:
            batch.add(waiting.pop(0))
        for text, token in batch.step():
            made[text].append(token)
        most = max(most, len(batch.rows))
    assert most == slots
    assert [made[text] for text in texts] == expected


def test_removing_a_text_leaves_the_others_alone(model):
    sampling = Sampling(max_tokens=20)
    texts = [Continuation(prompt(i, 5), sampling) for i in range(5)]
    batch = Batch(model, 5)
    for text in texts:
        batch.add(text)
    made = {text: [] for text in texts}
    for step in range(19):
        if step in (3, 4):
            batch.remove(texts[step - 3])
        for text, token in batch.step():
            made[text].append(token)
    assert len(made[texts[0]]) == 3
    assert len(made[texts[1]]) == 4
    for i in (2, 3, 4):
        assert made[texts[i]] == alone(model, prompt(i, 5), sampling)[:19]


def test_a_full_batch_takes_no_more_and_an_empty_prompt_is_none(model):
    batch = Batch(model, 1)
    batch.add(Continuation([1], Sampling(5)))
    with pytest.raises(ValueError, match="1 slots are taken"):
        batch.add(Continuation([1], Sampling(5)))
    with pytest.raises(ValueError, match="the prompt is empty"):
        Continuation([], Sampling(5))


def test_the_end_token_ends_a_text(model):
    ids = prompt(3, 10)
    tokens = alone(model, ids, Sampling(30))
    assert [token.finish for token in tokens] == [None] * 29 + ["length"]
    end = tokens[12].id
    first = next(i for i, token in enumerate(tokens) if token.id == end)
    ended = alone(model, ids, Sampling(30, end=end))
    assert [token.id for token in ended] == [token.id for token in tokens[: first + 1]]
    assert ended[-1].finish == "stop"


def test_long_prompts_are_read_in_parts_between_the_steps_of_others(model):
    batch = Batch(model, 2)
    first, long = Continuation(prompt(1, 3), Sampling(100)), Continuation(prompt(2, 5 * PROMPT_TOKENS), Sampling(5))
    batch.add(first)
    batch.step()
    batch.add(long)
    steps = [{text for text, _ in batch.step()} for _ in range(5)]
    assert steps == [{first}] * 4 + [{first, long}]


def test_logprobs_are_those_of_the_model(model):
    ids = prompt(5, 12)
    tokens = alone(model, ids, Sampling(6, temperature=1.0, seed=1, top_logprobs=4))
    text = ids + [token.id for token in tokens]
    with torch.no_grad():
        want = model(torch.tensor([text])).logits[0, :, :VOCABULARY].log_softmax(-1)
    for i, token in enumerate(tokens, len(ids) - 1):
        assert token.logprob == pytest.approx(float(want[i, token.id]), abs=1e-3)
        assert [id for id, _ in token.likeliest] == want[i].topk(4).indices.tolist()


def test_no_token_of_the_vocabulary_s_padding(model):
    """The head has 88 rows for 83 tokens."""
    tokens = alone(model, [1], Sampling(200, temperature=2.0, seed=0))
    assert max(token.id for token in tokens) < VOCABULARY


@pytest.mark.gpu
def test_on_a_gpu_too(model):
    import copy

    on_gpu = copy.deepcopy(model).cuda()
    wanted = [
        (prompt(i, length), Sampling(20, 0.8 * (i % 2), 1 - 0.1 * (i % 3), seed=i))
        for i, length in enumerate((5, 6, 40, 129, 600, 8))
    ]
    texts = [Continuation(*pair) for pair in wanted]
    batch = Batch(on_gpu, 6)
    for text in texts:
        batch.add(text)
    together = finish(batch, texts)
    for pair, tokens in zip(wanted, together, strict=True):
        batch.add(text := Continuation(*pair))
        assert finish(batch, [text])[0] == tokens
