"""The one thread that runs the model, between an event loop and a batch."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mamba_ssm.models.batching import Batch, Continuation, Sampling, Token

T = TypeVar("T")
# Of several texts, a second, about: an event keeps the event loop busy for some time, in which the model's thread waits
# for Python's lock. Each of 64 texts has one every 42 ms.
EVENTS = 1500
log = logging.getLogger("mamba_esi.server")


class Busy(Exception):
    """As many requests wait as may wait."""


class Closed(Exception):
    """The server is going down."""


class _Text(Continuation):
    """One of a stream's texts."""

    def __init__(self, prompt: list[int], sampling: Sampling, stream: Stream, index: int) -> None:
        super().__init__(prompt, sampling)
        self.stream, self.index, self.cancelled = stream, index, False
        self.made: list[Token] = []  # not handed over yet
        self.due = 0.0  # when they are


class Stream:
    """The tokens of some texts as they come, all that are there at once, as (index of the text, token).

    It ends when all texts have ended. Iterating raises TimeoutError when the time is up, Closed when the server goes
    down, and whatever the model raised.
    """

    def __init__(self, worker: Worker, prompts: Sequence[tuple[list[int], Sampling]], timeout: float) -> None:
        self.texts = [_Text(*prompt, self, index) for index, prompt in enumerate(prompts)]
        self._worker = worker
        self._open = set(range(len(self.texts)))  # those that have not ended
        self._made: asyncio.Queue[tuple[int, list[Token]] | BaseException] = asyncio.Queue()
        self._timer = asyncio.get_running_loop().call_later(timeout, self.put, TimeoutError())

    def put(self, made: tuple[int, list[Token]] | BaseException) -> None:
        self._made.put_nowait(made)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[tuple[int, Token]]:
        while self._open:
            there = [await self._made.get()]
            while not self._made.empty():
                there.append(self._made.get_nowait())
            tokens = []
            for made in there:
                if isinstance(made, BaseException):
                    self.cancel()
                    raise made
                index, more = made
                if self.texts[index].cancelled:
                    continue
                if more[-1].finish is not None:
                    self._open.discard(index)
                tokens += [(index, token) for token in more]
            if tokens:
                return tokens
        self.cancel()
        raise StopAsyncIteration

    def end(self, index: int) -> None:
        """No more tokens of this text are wanted: its slot is freed."""
        if not self.texts[index].cancelled:
            self.texts[index].cancelled = True
            self._open.discard(index)
            self._worker.wake()

    def cancel(self) -> None:
        """No more tokens are wanted."""
        self._timer.cancel()
        self._open.clear()
        for text in self.texts:
            text.cancelled = True
        self._worker.wake()


class Worker:
    """Runs a batch step by step in its own thread, and whatever else needs the model in between.

    start() is awaited in the event loop whose thread all other methods are for.
    """

    def __init__(self, new_batch: Callable[[], Batch], waiting: int) -> None:
        self._new_batch, self.limit = new_batch, waiting
        self._changed = threading.Condition()
        self._waiting: deque[_Text] = deque()
        self._jobs: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.decoding = 0  # texts in the batch
        self.steps = 0

    @property
    def waiting(self) -> int:
        """Texts and other work that wait for the model."""
        return len(self._waiting) + len(self._jobs)

    async def start(self) -> None:
        """Come back when the batch is there. Raises whatever kept it from that."""
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._started

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def close(self) -> None:
        """Stop after the step that is being made; what is not done raises Closed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def submit(self, prompts: Sequence[tuple[list[int], Sampling]], timeout: float) -> Stream:
        """Have texts continued, as soon as there are slots. Raises Busy."""
        self._check_room(len(prompts))
        stream = Stream(self, prompts, timeout)
        with self._changed:
            self._waiting += stream.texts
            self._changed.notify()
        return stream

    async def run(self, work: Callable[[], T], timeout: float) -> T:
        """Run something else that needs the model, between two steps. Raises Busy, TimeoutError, and what it raises."""
        self._check_room(1)
        future: asyncio.Future[T] = self._loop.create_future()
        with self._changed:
            self._jobs.append((work, future))
            self._changed.notify()
        try:
            return await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            raise TimeoutError from None  # another class before Python 3.11

    def _check_room(self, more: int) -> None:
        if self._closed:
            raise Closed
        if self.waiting + more > self.limit:
            raise Busy

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            batch = self._new_batch()
        except Exception as error:  # noqa: BLE001  start() raises it
            self._loop.call_soon_threadsafe(_resolve, self._started, None, error)
            return
        self._loop.call_soon_threadsafe(_resolve, self._started, None, None)
        while True:
            with self._changed:
                while not (self._closed or self._jobs or self._waiting or len(batch)):
                    self._changed.wait()
                if self._closed:
                    left = [*_texts(batch), *self._waiting]
                    futures = [future for _, future in self._jobs]
                    break
                for text in _texts(batch):
                    if text.cancelled:
                        batch.remove(text)
                while self._waiting and len(batch) < batch.slots:
                    text = self._waiting.popleft()
                    if not text.cancelled:
                        batch.add(text)
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                self._do(*job)
            try:
                made = batch.step() if len(batch) else []
            except Exception as error:
                log.exception("a step of the model failed")
                self._loop.call_soon_threadsafe(_fail, _texts(batch), error)
                batch, made = self._new_batch(), []
            self.decoding, self.steps = len(batch), self.steps + bool(made)
            if due := _due(made, bool(self._jobs)):
                self._loop.call_soon_threadsafe(_deliver, due)
        self._loop.call_soon_threadsafe(_fail, left, Closed())
        for future in futures:
            self._loop.call_soon_threadsafe(_resolve, future, None, Closed())

    def _do(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  whoever waits for it raises it
            failure = error
        self._loop.call_soon_threadsafe(_resolve, future, result, failure)


def _texts(batch: Batch) -> list[Any]:
    return [*batch.rows, *batch.joining]


def _due(made: list[tuple[Any, Token]], all_due: bool) -> list[tuple[_Text, list[Token]]]:
    """What is to be handed over after a step: a text's first token and its last ones at once, others some together.

    ``all_due``: where the next step may be long in coming.
    """
    now, due = time.monotonic(), []
    for text, token in made:
        text.made.append(token)
        if all_due or now >= text.due or token.finish is not None:
            due.append((text, text.made))
            text.made, text.due = [], now + (len(made) - 1) / EVENTS
    return due


def _deliver(due: list[tuple[_Text, list[Token]]]) -> None:
    for text, tokens in due:
        text.stream.put((text.index, tokens))


def _fail(texts: list[_Text], error: Exception) -> None:
    for stream in {text.stream for text in texts}:
        stream.put(error)


def _resolve(future: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if future.done():
        return  # nobody waits any more
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
