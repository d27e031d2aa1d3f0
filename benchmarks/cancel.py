"""How long it takes until a cancelled batch, or single jobs, have left the engines, and have ended for their client.

Two workers are attached to simulated engines in this process, whose running requests can be seen, and hold long jobs of
another batch beside. What is cancelled waits in the queue, waits in a device queue behind full seats, runs, waits as a
suspect after its worker was killed, or waits to be tried again after the engine's errors.

Summary: ``cancel_median_s`` and ``cancel_worst_s`` over all situations: seconds from the call of ``cancel`` until no
engine runs a request of it and every result is there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import orjson

from benchmarks.chaotic.flaky_server import FlakyServer, Mood
from benchmarks.chaotic.jobs import CONTEXT_TOKENS, MODEL
from benchmarks.cluster import POOL, BenchCluster, BenchmarkError, bench_cluster
from benchmarks.report import Report, Row, at_least, note, options_parser, run_benchmark, server_name
from benchmarks.waiting import until_true
from broker.client import new_batch_id
from broker.keys import PoolKeys
from broker.openai_batch import RequestLine
from broker.throughput import Profile

_WORKERS = 2
_PATIENCE_S = 60.0
_LOOK_S = 0.005
#: A job takes more than a minute: nothing ends by itself.
_STEP_S = 0.05
_OUTPUT_TOKENS = CONTEXT_TOKENS - 100
_KEYS = PoolKeys(POOL)


class _Site:
    """The cluster, and the engines behind its workers."""

    def __init__(self, cluster: BenchCluster, servers: list[FlakyServer], seats: int) -> None:
        self.cluster = cluster
        self.servers = servers
        self.seats = seats

    @property
    def running(self) -> int:
        """Requests in the engines."""
        return sum(server.running for server in self.servers)

    async def submit(self, jobs: int) -> str:
        """A sealed batch of long jobs."""
        batch = new_batch_id()
        await self.cluster.client.submit([_request(n) for n in range(jobs)], batch)
        await self.cluster.client.seal(batch)
        return batch

    async def fill(self) -> str:
        """Another batch that fills all seats, and more."""
        batch = await self.submit(self.seats * _WORKERS + 8)
        await until(lambda: self.running >= self.seats * _WORKERS, "the engines are full")
        return batch

    async def bound(self, batch: str) -> int:
        """Jobs of a batch that are in device queues."""
        queues = [await self.cluster.client.redis.xrange(_KEYS.device(name)) for name in self.names]
        return sum(fields[b"job"].startswith(batch.encode()) for found in queues for _, fields in found)

    @property
    def names(self) -> list[str]:
        """Of the workers."""
        return [f"worker-{n + 1}" for n in range(_WORKERS)]

    async def complete(self, batch: str) -> bool:
        """Whether the batch has ended."""
        return (await self.cluster.client.counts(batch)).complete

    async def cancelled(self, batch: str, left: int = 0) -> float:
        """Cancel a batch; seconds until ``left`` requests are in the engines and it has ended."""
        began = time.monotonic()
        await self.cluster.client.cancel(batch)

        async def over() -> bool:
            return self.running <= left and await self.complete(batch)

        await until(over, "the batch has ended")
        return time.monotonic() - began

    async def clear(self, *batches: str) -> None:
        """Cancel what is left."""
        for batch in batches:
            await self.cancelled(batch)


async def running(site: _Site) -> float:
    """A batch that runs."""
    batch = await site.fill()
    return await site.cancelled(batch)


async def single_running(site: _Site) -> float:
    """Half of the jobs of a batch that runs, by their ids."""
    batch = await site.submit(site.seats)
    await until(lambda: site.running == site.seats, "all run")
    began = time.monotonic()
    await site.cluster.client.cancel_jobs(batch, [f"r{n}" for n in range(site.seats // 2)])
    await until(lambda: site.running == site.seats - site.seats // 2, "they left the engines")
    took = time.monotonic() - began
    await site.clear(batch)
    return took


async def queued(site: _Site) -> float:
    """A batch in the request stream, behind another that runs."""
    other = await site.fill()
    batch = await site.submit(1000)
    took = await site.cancelled(batch, site.running)
    await site.clear(other)
    return took


async def in_device_queue(site: _Site) -> float:
    """A batch with jobs in device queues that have not started, as all seats are full."""
    other = await site.submit(site.seats * _WORKERS - 2)
    await until(lambda: site.running == site.seats * _WORKERS - 2, "the engines are almost full")
    batch = await site.submit(50)
    bound = await until(lambda: site.bound(batch), "some are in device queues")
    await asyncio.sleep(0.2)
    took = await site.cancelled(batch, site.seats * _WORKERS - 2)
    note(f"in device queues: {bound} jobs of it were bound")
    await site.clear(other)
    return took


async def in_quarantine(site: _Site) -> float:
    """A batch whose worker was killed: its jobs are suspects, of which one runs alone, the rest wait."""
    batch = await site.submit(site.seats)
    await until(lambda: site.running == site.seats, "all run")
    victims = [worker for worker in site.cluster.workers if not worker.ended][-_WORKERS:]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    await asyncio.gather(*(victim.wait() for victim in victims))
    await start_workers(site)

    async def suspected() -> bool:
        left = sum((await site.cluster.monitor.waiting()).values())
        return 0 < left < site.seats and 0 < site.running < site.seats

    await until(suspected, "suspects wait, and one runs")
    return await site.cancelled(batch)


async def delayed(site: _Site) -> float:
    """A batch that got errors from the engine and is to be tried again in a minute."""
    async with AsyncExitStack() as stack:
        for server in site.servers:
            await stack.enter_async_context(server.in_mood(Mood.ERROR))
        batch = await site.submit(100)

        async def waits() -> bool:
            return await site.cluster.monitor.delayed() == 100

        await until(waits, "all are delayed")
        return await site.cancelled(batch)


SITUATIONS = (running, single_running, queued, in_device_queue, in_quarantine, delayed)


async def main(options: argparse.Namespace) -> Report:
    """Measure all situations."""
    device = Profile(0, 0, 0, _STEP_S, 0, 0, kv_tokens=options.seats * CONTEXT_TOKENS, seats=options.seats)
    os.environ["TOKENYARD_RETRY_FIRST_S"] = "60"
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FlakyServer(device)) for _ in range(_WORKERS)]
        cluster = await stack.enter_async_context(bench_cluster(MODEL, [MODEL]))
        site = _Site(cluster, servers, options.seats)
        await cluster.start_scheduler()
        await start_workers(site)
        seconds: dict[str, list[float]] = {}
        for situation in SITUATIONS:
            times = min(options.times, 2) if situation is in_quarantine else options.times
            name = situation.__name__.replace("_", " ")
            seconds[name] = [await situation(site) for _ in range(times)]
            note(f"{name}: worst {max(seconds[name]):.3f} s")
        server = await server_name(cluster.client.redis)
    rows: list[Row] = [
        {"cancelled": name, "times": len(took), "median s": median(took), "worst s": max(took)}
        for name, took in seconds.items()
    ]
    every = [one for took in seconds.values() for one in took]
    summary = {"cancel_median_s": median(every), "cancel_worst_s": max(every)}
    notes = [f"{_WORKERS} attached workers of {options.seats} seats"]
    return Report("Seconds until it has left the engines and ended", rows, summary, server, notes)


async def start_workers(site: _Site) -> None:
    """Start the workers, each attached to its server, and wait until they are ready."""
    cluster = site.cluster
    for name, server in zip(site.names, site.servers, strict=True):
        words = ["worker", "--pool", POOL, "--model", MODEL, "--name", name, "--engine", "openai", "--url", server.url]
        words += ["--seats", str(site.seats), "--kv-tokens", str(site.seats * CONTEXT_TOKENS)]
        cluster.workers.append(await cluster.start_process(name, *words))

    async def are_ready() -> bool:
        beats = await cluster.monitor.heartbeats()
        pids = {worker.pid for worker in cluster.workers if not worker.ended}
        return (
            sum(beat is not None and beat.state == "ready" and beat.pid in pids for beat in beats.values()) == _WORKERS
        )

    await until(are_ready, "the workers are ready")


async def until(look: Callable[[], Any], what: str) -> Any:
    """Look until what is seen is true, and return it."""
    try:
        return await until_true(look, _PATIENCE_S, _LOOK_S)
    except TimeoutError:
        raise BenchmarkError(f"did not come true within {_PATIENCE_S:.0f} s: {what}") from None


def _request(number: int) -> RequestLine:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{number}?"}],
        "max_tokens": _OUTPUT_TOKENS,
        "ignore_eos": True,
    }
    return RequestLine(f"r{number}", "/v1/chat/completions", MODEL, orjson.dumps(body), _OUTPUT_TOKENS, number + 1)


def _options() -> argparse.Namespace:
    parser = options_parser("cancel", __doc__ or "")
    parser.add_argument("--seats", type=at_least(4), default=64, help="of each worker (64)")
    parser.add_argument("--times", type=at_least(1), default=5, help="each situation; after a kill at most twice (5)")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
