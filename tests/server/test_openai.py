"""OpenAI's own client against a real server."""

import asyncio

import openai
import pytest
import torch
from serving import serving

from mamba_ssm.server.chat import as_text
from mamba_ssm.server.schemas import Message

PROMPT = "The curious gardener of Zürich"
QUESTION = "Who planted 42 trees near Zürich in chapter 6?"


@pytest.fixture(scope="module")
def client(plain):
    return plain.openai()


def generated(engine, text, tokens):
    """What the model goes on with, by its own generate()."""
    ids = engine.tokenizer.encode(text).ids.tolist()
    end = engine.tokenizer.end_of_text
    output = engine.model.generate(torch.tensor([ids]), max_length=len(ids) + tokens, eos_token_id=end)
    return engine.tokenizer.decode(output[0, len(ids) :].tolist())


def complete(client, plain, **options):
    wanted = {"model": plain.model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **options}
    return client.completions.create(**wanted)


def test_models(client, plain):
    assert [model.id for model in client.models.list()] == [plain.model]
    assert client.models.retrieve(plain.model).owned_by == "mamba-esi"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_a_greedy_completion_is_what_generate_says(client, plain, engine):
    answer = complete(client, plain)
    assert answer.choices[0].text == generated(engine, PROMPT, 12)
    assert answer.choices[0].finish_reason == "length"
    prompt = len(engine.tokenizer.encode(PROMPT).ids)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 12, prompt + 12)
    assert answer._request_id


def test_a_stream_is_the_same_in_pieces(client, plain):
    whole = complete(client, plain, seed=3, temperature=1, n=2)
    chunks = list(complete(client, plain, seed=3, temperature=1, n=2, stream=True))
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + ["length"]
    assert all(c.usage is None for c in chunks)
    chunks = list(complete(client, plain, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == complete(client, plain).usage


def test_seeds_repeat_and_choices_differ(client, plain):
    first = [choice.text for choice in complete(client, plain, temperature=1, seed=1, n=3).choices]
    assert len(set(first)) == 3
    assert [choice.text for choice in complete(client, plain, temperature=1, seed=1, n=3).choices] == first
    assert complete(client, plain, temperature=1).choices[0].text not in first
    assert complete(client, plain, temperature=1, top_p=0).choices[0].text == complete(client, plain).choices[0].text


def test_prompts_of_every_form(client, plain, engine):
    ids = engine.tokenizer.encode(PROMPT).ids.tolist()
    want = complete(client, plain).choices[0].text
    assert complete(client, plain, prompt=ids).choices[0].text == want
    answer = complete(client, plain, prompt=["", PROMPT])
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].text == want
    answer = complete(client, plain, prompt=[ids, [5, 6, 7]], n=2, temperature=0)
    assert [answer.choices[i].text for i in (0, 1)] == [want, want]
    with pytest.raises(openai.BadRequestError, match="32767"):
        complete(client, plain, prompt=[10**6])


def test_stop_strings(client, plain):
    text = complete(client, plain, max_tokens=40).choices[0].text
    stop = text[20:23]
    at = text.index(stop)
    answer = complete(client, plain, max_tokens=40, stop=[stop, "never said"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text[:at], "stop")
    chunks = list(complete(client, plain, max_tokens=40, stop=stop, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == text[:at]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs(client, plain, engine):
    told = complete(client, plain, logprobs=3).choices[0].logprobs
    assert "".join(told.tokens) == complete(client, plain).choices[0].text
    assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(12)]
    ids = engine.tokenizer.encode(PROMPT).ids.tolist()
    with torch.no_grad():
        want = engine.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert told.token_logprobs[0] == pytest.approx(float(want.max()), abs=1e-4)
    assert max(told.top_logprobs[0].values()) == told.token_logprobs[0]
    assert len(told.top_logprobs[0]) == 3
    content = chat(client, plain, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == 12
    assert all(len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob for token in content)
    with pytest.raises(openai.BadRequestError, match="set it to true"):
        chat(client, plain, top_logprobs=2)


def chat(client, plain, **options):
    messages = [
        {"role": "system", "content": "You know gardens."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A gardener."},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    ]
    wanted = {"model": plain.model, "messages": messages, "max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(**wanted)


def test_a_conversation_is_plain_text_to_the_model(client, plain, engine):
    answer = chat(client, plain)
    text = "You know gardens.\nUser: Who are you?\nAssistant: A gardener.\nUser: Where?\nAssistant:"
    assert answer.choices[0].message.content == generated(engine, text, 12).lstrip()
    assert answer.usage.prompt_tokens == len(engine.tokenizer.encode(text).ids)
    chunks = list(chat(client, plain, stream=True, n=2))
    for index in range(2):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == answer.choices[0].message.content
        assert mine[-1].finish_reason == "length"
    assert chat(client, plain, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3


def test_a_turn_ends_where_the_next_one_begins():
    assert as_text([Message(role="user", content="Hello")]) == "User: Hello\nAssistant:"


def test_what_is_not_served_is_refused(client, plain):
    for options in ({"presence_penalty": 0.5}, {"logit_bias": {"5": 1}}, {"echo": True}, {"best_of": 3}):
        with pytest.raises(openai.BadRequestError, match=next(iter(options))):
            complete(client, plain, **options)
    complete(client, plain, presence_penalty=0, frequency_penalty=0, best_of=1, echo=False, user="me")
    for options in ({"n": 0}, {"max_tokens": 0}, {"temperature": -1}, {"stop": [""]}, {"max_tokens": 10**9}):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(client, plain, **options)
        assert caught.value.param == next(iter(options))
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'") as caught:
        complete(client, plain, model="gpt-4")
    assert caught.value.code == "model_not_found"


def test_answers_from_a_book(with_book, book):
    want = book.ask(QUESTION).to_dict()
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    wanted = {"model": with_book.model, "messages": [*messages, {"role": "user", "content": QUESTION}]}
    client = with_book.openai()
    answer = client.chat.completions.create(**wanted)
    assert answer.choices[0].message.content == want["answer"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.mamba_esi["evidence"] == want["evidence"]
    assert answer.mamba_esi["confidence"] == want["confidence"]
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == want["answer"]
    assert chunks[-2].mamba_esi["evidence"] == want["evidence"]
    assert chunks[-1].usage == answer.usage
    with pytest.raises(openai.BadRequestError, match="no question"):
        client.chat.completions.create(model=with_book.model, messages=messages[1:])
    # Completions stay plain generation.
    assert client.completions.create(model=with_book.model, prompt=PROMPT, max_tokens=3).usage.completion_tokens == 3


def test_many_at_once_get_what_each_gets_alone(plain):
    """Sampled, streamed or not, of different lengths: nothing lost, nothing mixed up."""
    jobs = [
        {"prompt": f"{PROMPT}, number {i}", "max_tokens": 5 + i, "temperature": i % 3 / 2, "seed": i} for i in range(24)
    ]
    client = plain.openai()
    alone = [client.completions.create(model=plain.model, **job).choices[0].text for job in jobs]

    async def one(client, i, job):
        if i % 2:
            return (await client.completions.create(model=plain.model, **job)).choices[0].text
        stream = await client.completions.create(model=plain.model, **job, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def everyone():
        async with openai.AsyncOpenAI(base_url=f"{plain.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*[one(client, i, job) for i, job in enumerate(jobs)])

    assert asyncio.run(everyone()) == alone


def test_a_full_queue_says_when_to_come_again(engine):
    with serving(engine, slots=1, waiting=1) as served:
        client = served.openai()
        long = {"model": served.model, "prompt": PROMPT, "max_tokens": 4096, "temperature": 0}
        with client.completions.create(**long, stream=True) as first:
            next(iter(first))
            with client.completions.create(**long, stream=True), pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(**long)
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "busy"


def test_keys(engine):
    with serving(engine, api_key="schlüssel") as served:
        assert served.openai(api_key="none").api_key == "none"
        with pytest.raises(openai.AuthenticationError, match="API key"):
            served.openai(api_key="wrong").models.list()
        headers = {"Authorization": "Bearer schlüssel".encode()}
        assert served.http.get("/v1/models", headers=headers).status_code == 200
        assert served.http.get("/metrics").status_code == 401
        assert served.http.get("/healthz").status_code == 200
