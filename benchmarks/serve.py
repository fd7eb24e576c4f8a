"""The server under load: throughput with one client and with many, latencies, and whether answers are lost or mixed up.

    python benchmarks/serve.py --out benchmarks/results/serve_cpu.json
    python benchmarks/serve.py --device cuda --out benchmarks/results/serve_gpu.json
    python benchmarks/serve.py --seconds 5 --clients 8       a short try

The server is `mamba-esi serve` in a process of its own; the clients share others. Each client asks for one streamed
completion after another, of prompts that differ in text and length; a third of them is sampled with a seed, the others
are greedy. Before, every prompt is answered once with nobody else there, and each later answer must be that very text.
After the time no request begins, those under way end, and throughput is all tokens by all of that time. "first":
seconds to the first piece of a text; "request": to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine, write

WORDS = ("the", "history", "of", "a", "small", "town", "where", "people", "grew", "apples", "and", "built", "boats")
SOME_TEXT = re.compile(rb'"text":"[^"]')
TARGET = {"cpu": 3, "cuda": 8}  # times the throughput of one client


def jobs(count: int, tokens: int) -> list[dict[str, Any]]:
    """Requests that all differ: of 3 words, of 5 and so on, every third one sampled."""
    made = []
    for i in range(count):
        words = [WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(3 + 2 * i)]
        how = {"temperature": 0.8, "seed": i} if i % 3 == 0 else {"temperature": 0}
        made.append({"prompt": f"Number {i}: {' '.join(words)}", "max_tokens": tokens, **how})
    return made


@dataclass
class Load:
    """What the clients of one phase saw."""

    requests: int = 0
    tokens: int = 0
    lost: int = 0
    mixed_up: int = 0
    first: list[float] = field(default_factory=list)
    request: list[float] = field(default_factory=list)

    def __add__(self, other: Load) -> Load:
        return Load(*[getattr(self, at.name) + getattr(other, at.name) for at in fields(self)])

    def report(self, clients: int, seconds: float) -> dict[str, Any]:
        return {
            "clients": clients,
            "seconds": seconds,
            "requests": self.requests,
            "lost": self.lost,
            "mixed_up": self.mixed_up,
            "tokens_per_second": self.tokens / seconds,
            "requests_per_second": self.requests / seconds,
            "first_seconds": percentiles(self.first),
            "request_seconds": percentiles(self.request),
        }


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else 99 * (values or [math.nan])
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


@contextmanager
def server(device: str, slots: int) -> Iterator[str]:
    """The address of a server."""
    command = [sys.executable, "-m", "mamba_ssm.cli.main", "serve", "--port", "0", "--device", device]
    with subprocess.Popen([*command, "--slots", str(slots)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"serve: the server did not start: {line}{process.stderr.read()}")
        try:
            yield found[0]
        finally:
            process.terminate()


async def ask(http: httpx.AsyncClient, model: str, job: dict[str, Any]) -> tuple[str, int, float, float]:
    """A streamed completion: its text, its tokens, seconds to its first piece and to its end."""
    began, first = time.perf_counter(), 0.0
    came = bytearray()
    body = {"model": model, **job, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        # Read as it comes, and parsed at the end: line by line, httpx takes as long as the server.
        async for part in response.aiter_raw():
            came += part
            if not first and SOME_TEXT.search(came):
                first = time.perf_counter() - began
    whole = time.perf_counter() - began
    events = [json.loads(line[6:]) for line in came.splitlines() if line.startswith(b"data: {")]
    tokens = next((event["usage"]["completion_tokens"] for event in events if event.get("usage")), 0)
    if not tokens:
        raise httpx.RemoteProtocolError("the stream ended before its usage")
    return "".join(choice["text"] for event in events for choice in event["choices"]), tokens, first, whole


async def alone(url: str, work: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The server's model, and what it answers with nobody else there."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        return model, [(await ask(http, model, job))[0] for job in work]


async def client(
    url: str, model: str, work: list[dict[str, Any]], expected: list[str], seconds: float, turn: int, load: Load
) -> None:
    """Ask one after another, from number ``turn`` on."""
    began = time.perf_counter()
    # A pool of its own, for httpx looks at all connections of one for each request; verify would read certificates.
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as http:
        while True:
            index = turn % len(work)
            turn += 1
            try:
                text, tokens, first, whole = await ask(http, model, work[index])
            except httpx.HTTPError as error:
                print(f"lost: {error!r}", file=sys.stderr)
                load.lost += 1
            else:
                load.mixed_up += text != expected[index]
                load.requests += 1
                load.tokens += tokens
                load.first.append(first)
                load.request.append(whole)
            if time.perf_counter() > began + seconds:
                return


def clients(
    url: str, model: str, work: list[dict[str, Any]], expected: list[str], seconds: float, turns: list[int]
) -> Load:
    """A client for each of turns, in this process."""

    async def together() -> Load:
        load = Load()
        await asyncio.gather(*[client(url, model, work, expected, seconds, turn, load) for turn in turns])
        return load

    gc.freeze()  # or each look at all that was imported stops these clients for a tenth of a second
    return asyncio.run(together())


@contextmanager
def processes(count: int) -> Iterator[Any]:
    """A pool of processes that have begun."""
    context = multiprocessing.get_context("spawn")
    begun = context.Barrier(count + 1)
    with context.Pool(count, begun.wait) as pool:
        begun.wait(timeout=300)
        yield pool


def measure(url: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    work = jobs(args.prompts, args.tokens)
    model, expected = asyncio.run(alone(url, work))
    phases = []
    with processes(args.processes) as pool:
        for count in (1, args.clients):
            shares = [list(range(first, count, args.processes)) for first in range(min(count, args.processes))]
            began = time.perf_counter()
            loads = pool.map(partial(clients, url, model, work, expected, args.seconds), shares, 1)
            found = sum(loads, Load()).report(count, time.perf_counter() - began)
            phases.append(found)
            print(
                f"{count:>3} clients: {found['tokens_per_second']:,.0f} tokens/s, {found['requests']} requests, "
                f"{found['lost']} lost, {found['mixed_up']} mixed up, "
                f"first {found['first_seconds']['p50']:.3f} s, request {found['request_seconds']['p50']:.3f} s "
                "(medians)",
                flush=True,
            )
    return phases


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="of each phase (default: %(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 4),
        help="of the clients (default: one for four cores, here %(default)s)",
    )
    parser.add_argument("--prompts", type=int, default=64, help="that differ (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of a completion (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args(argv)
    with server(args.device, args.clients) as url:
        phases = measure(url, args)
    ratio = phases[1]["tokens_per_second"] / phases[0]["tokens_per_second"]
    print(f"{ratio:.2f} times the throughput of one client; the target is {TARGET[args.device]}")
    if args.out:
        write(
            args.out,
            {
                **machine(),
                "threads": torch.get_num_threads(),
                "arguments": {name: value for name, value in vars(args).items() if name != "out"},
                "phases": phases,
                "times_one_client": ratio,
                "target": TARGET[args.device],
            },
        )
    return 0 if all(found["lost"] == found["mixed_up"] == 0 for found in phases) else 1


if __name__ == "__main__":
    raise SystemExit(main())
