"""One chaos run, from the first process to the last look."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis.exceptions as rex

from benchmarks.chaotic.clients import BatchClient, run_clients
from benchmarks.chaotic.faults import CLOCK_KINDS, ENGINE_KINDS, KINDS, Fault, draw
from benchmarks.chaotic.flaky_server import FlakyServer
from benchmarks.chaotic.injecting import Injected, Injector
from benchmarks.chaotic.invariants import Findings, check
from benchmarks.chaotic.jobs import MODEL, write_batches
from benchmarks.chaotic.redis_process import RedisProcess, free_port
from benchmarks.chaotic.service import Service
from benchmarks.chaotic.site import (
    POOL,
    Site,
    attached_engines,
    device_of,
    seats_for,
    simulated_engines,
    vllm_engines,
)
from benchmarks.cluster import BenchmarkError
from benchmarks.report import note, server_name
from broker.concurrency import cancel_all
from broker.store.client import Registry

#: With an engine within them, and attached to a server.
OWN_ENGINES, ATTACHED = 2, 2
WORKERS = OWN_ENGINES + ATTACHED
_JOBS_A_BATCH = 500
_LEAST_BATCHES = 6
#: So long all may take after the last fault, beside the time that the jobs take (seconds).
_LAST_S = 180.0
#: Real engines serve after this long at the latest (seconds).
_LOADED_S = 180.0
#: So much of the work must still be there where the speed under faults is measured.
_BUSY_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Terms:
    """What to run.

    Attributes:
        jobs: how many.
        faults: how many.
        minutes: over which they come.
        seed: decides jobs and faults.
        fsync: of Redis' append-only file.
        embedded: the embedded server instead of an installed one.
        kinds: of the faults.
        vllm: real engines, two of them, instead of simulated ones.
    """

    jobs: int
    faults: int
    minutes: float
    seed: int
    fsync: str
    embedded: bool
    kinds: tuple[str, ...] = tuple(KINDS)
    vllm: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of it."""

    findings: Findings
    injected: list[Injected]
    skipped: int
    calm_jobs_per_s: float
    chaos_jobs_per_s: float
    seconds: float
    died: list[str]
    tracebacks: list[str]
    refused: list[str]
    server: str


@dataclass(slots=True)
class _Meter:
    """Ended jobs at moments."""

    total: int
    samples: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    def rate(self, begin: float, end: float) -> float:
        """Jobs a second between two moments, while most of the work was still there."""
        inside = [s for s in self.samples if begin <= s[0] <= end and s[1] <= _BUSY_SHARE * self.total]
        if len(inside) < 2:
            return 0.0
        (first_at, first), (last_at, last) = inside[0], inside[-1]
        return (last - first) / (last_at - first_at)


async def run_chaos(terms: Terms, folder: Path) -> Outcome:
    """Run it in an empty folder."""
    rng = random.Random(terms.seed)
    seconds = 60 * terms.minutes
    calm_s = max(5.0, 0.1 * seconds)
    batches = write_batches(folder, rng, terms.jobs, max(_LEAST_BATCHES, terms.jobs // _JOBS_A_BATCH))
    async with AsyncExitStack() as stack:
        server = RedisProcess(folder, free_port(), terms.fsync, embedded=terms.embedded)
        stack.push_async_callback(server.end)
        await server.start()
        await Registry(server.client).add_pool(POOL, [MODEL])
        seats = seats_for(terms.jobs / (seconds + calm_s), WORKERS)
        servers = [
            await stack.enter_async_context(FlakyServer(device_of(seats))) for _ in range(0 if terms.vllm else ATTACHED)
        ]
        engines = vllm_engines() if terms.vllm else simulated_engines(folder, OWN_ENGINES, seats)
        engines += attached_engines([one.url for one in servers], seats)
        site = Site(folder, server.url, engines)
        stack.push_async_callback(site.end)
        clients = [BatchClient(site, batch) for batch in batches]
        names = [worker.name for worker in site.workers]
        service = Service(server.client, names, [batch.name for batch in batches])
        await site.start()
        keeping = asyncio.ensure_future(site.keep())
        working = asyncio.ensure_future(_with_end(run_clients(clients), clients))
        meter = _Meter(terms.jobs)
        metering = asyncio.ensure_future(_measure(service, clients, meter))
        stack.push_async_callback(cancel_all, [keeping, working, metering])
        begin = time.monotonic()
        await _flows(service, _LOADED_S if terms.vllm else calm_s)
        calm_from = time.monotonic()
        await asyncio.sleep(calm_s)
        chaos_from = time.monotonic()
        impossible = (frozenset() if server.clock_can_jump else CLOCK_KINDS) | (
            frozenset() if servers else ENGINE_KINDS
        )
        faults = draw(rng, terms.faults, seconds, [kind for kind in terms.kinds if kind not in impossible])
        injected = await _inject_all(Injector(site, server, service, clients, servers), faults, chaos_from)
        chaos_to = time.monotonic()
        await _patiently(working, terms, seconds)
        name = await server_name(server.client)
        findings = await check(clients, service, names)
        return Outcome(
            findings=findings,
            injected=[i for i in injected if i],
            skipped=sum(i is None for i in injected),
            calm_jobs_per_s=meter.rate(calm_from, chaos_from),
            chaos_jobs_per_s=meter.rate(chaos_from, chaos_to),
            seconds=time.monotonic() - begin,
            died=[f"{one.name}: {why}" for one in site.kept for why in one.died],
            tracebacks=site.tracebacks(),
            refused=[f"{c.batch.name}: {why}" for c in clients for why in c.errors],
            server=name,
        )


async def _inject_all(injector: Injector, faults: Sequence[Fault], begin: float) -> list[Injected | None]:
    """Each at its time, however long the others still take."""

    async def one(fault: Fault) -> Injected | None:
        await asyncio.sleep(max(begin + fault.at - time.monotonic(), 0))
        injected = await injector.inject(fault)
        if injected is not None:
            took = "" if injected.recovery_s is None else f", served again after {injected.recovery_s:.2f} s"
            note(f"{fault.at:7.1f} s  {fault.number:4}  {fault.kind}: {injected.target}{took}")
        return injected

    return await asyncio.gather(*(one(fault) for fault in faults))


async def _measure(service: Service, clients: Sequence[BatchClient], meter: _Meter) -> None:
    while True:
        with suppress(rex.RedisError, OSError):
            pipe = service.client.pipeline(transaction=False)
            for client in clients:
                pipe.hmget(service.keys.batch(client.batch.name), "done", "failed")
            ended = sum(int(n or 0) for answer in await pipe.execute() for n in answer)
            meter.samples.append((time.monotonic(), ended))
        await asyncio.sleep(0.5)


async def _flows(service: Service, patience_s: float) -> None:
    async def completes() -> bool:
        return bool((await service.flow()).completed)

    if await service.seconds_until(completes, time.monotonic() + patience_s) is None:
        raise BenchmarkError("no job ended before the first fault: see the logs of workers and schedulers")


async def _with_end(work: Awaitable[None], clients: Sequence[BatchClient]) -> None:
    try:
        await work
    finally:
        await asyncio.gather(*(client.end() for client in clients))


async def _patiently(working: asyncio.Future[None], terms: Terms, seconds: float) -> None:
    """Wait for the clients, as long as all jobs could take, and then some."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds + _LAST_S):
            await asyncio.shield(working)
    if working.done():
        working.result()
    else:
        note(f"not all of {terms.jobs:,} jobs have come to an end")
