"""Streams of tokens, of a model that is faster than who reads them."""

import asyncio
import time

from mamba_ssm.models.batching import Batch, Continuation, Sampling
from mamba_ssm.server import worker as worker_module
from mamba_ssm.server.worker import Worker

PROMPTS = [([5, 6, 7], Sampling(max_tokens=3)), ([8, 9], Sampling(max_tokens=30))]


def alone(model, prompt, sampling):
    batch, tokens = Batch(model, 2), []
    batch.add(Continuation(prompt, sampling))
    while len(batch):
        tokens += [token.id for _, token in batch.step()]
    return tokens


def streamed(model, read):
    async def run():
        worker = Worker(lambda: Batch(model, 2), 8)
        await worker.start()
        try:
            stream = worker.submit(PROMPTS, timeout=60)
            while worker.steps < PROMPTS[1][1].max_tokens:  # the event loop is busy, and the model goes on
                time.sleep(0.01)
            return await read(stream)
        finally:
            await worker.close()

    return asyncio.run(run())


def test_tokens_that_are_there_come_together(engine):
    async def read(stream):
        return [made async for made in stream]

    parts = streamed(engine.model, read)
    assert len(parts) < 10
    for index, prompt in enumerate(PROMPTS):
        assert [token.id for made in parts for i, token in made if i == index] == alone(engine.model, *prompt)


def test_a_text_that_is_ended_after_its_last_token_came_ends_no_other(engine):
    async def read(stream):
        tokens = []
        async for made in stream:
            stream.end(0)  # as where a stop string is found in what came before the last token
            tokens += [token.id for index, token in made if index == 1]
            await asyncio.sleep(0.01)
        return tokens

    assert streamed(engine.model, read) == alone(engine.model, *PROMPTS[1])


def test_tokens_of_several_texts_wait_for_one_another_but_the_first_and_the_last_do_not(engine, monkeypatch):
    monkeypatch.setattr(worker_module, "EVENTS", 0.001)

    async def run():
        worker = Worker(lambda: Batch(engine.model, 2), 8)
        await worker.start()
        try:
            return [made async for made in worker.submit(PROMPTS, timeout=60)]
        finally:
            await worker.close()

    parts = asyncio.run(run())
    for index, prompt in enumerate(PROMPTS):
        mine = [part for made in parts if (part := [token.id for i, token in made if i == index])]
        assert len(mine) <= 2
        assert [token for part in mine for token in part] == alone(engine.model, *prompt)
