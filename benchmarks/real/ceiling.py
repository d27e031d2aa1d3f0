"""The ceiling: what each worker does from a private backlog, while all the others do the same."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cluster import BenchmarkError
from benchmarks.real.cpu import CpuClock, CpuUse
from benchmarks.real.processes import POOL, RealCluster
from benchmarks.real.rates import Sample, rate_of
from broker.client import new_batch_id
from broker.heartbeat import Heartbeat
from broker.openai_batch import RequestLine
from broker.policies.base import Placement
from broker.store.scheduler import SchedulerStore

_OWNER = "private-backlogs"
_LEASE_S = 3600.0
_RESULT_TTL_S = 3600
# A step of a slow engine, which ends before its requests are dropped, may take a minute.
_ABORT_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Span:
    """How long to let engines work.

    Attributes:
        seconds: at least.
        tokens: until so many, prompt and output, have been worked off by all together; 0: not looked at.
        jobs: until each has ended so many requests: what it was given at first has been read by then.
        most_s: seconds after which it ends all the same.
    """

    seconds: float
    tokens: int = 0
    jobs: int = 0
    most_s: float = math.inf

    def is_over(self, elapsed_s: float, tokens: int, jobs: int) -> bool:
        """Whether it ends now, with so many tokens worked off by all, and so many requests ended by each."""
        enough = tokens >= self.tokens and jobs >= self.jobs
        return elapsed_s >= self.seconds and (enough or elapsed_s >= self.most_s)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Rates of the workers, side by side.

    Attributes:
        rates: prompt and output tokens a second of each.
        output_rates: output tokens alone.
        seconds: length of the window.
        cpu: who used the CPU in it.
    """

    rates: dict[str, float]
    output_rates: dict[str, float]
    seconds: float
    cpu: CpuUse

    @property
    def tokens_per_s(self) -> float:
        """The sum."""
        return sum(self.rates.values())

    @property
    def output_tokens_per_s(self) -> float:
        """The sum of the output tokens."""
        return sum(self.output_rates.values())


async def measure_ceiling(
    cluster: RealCluster, backlogs: Mapping[str, Sequence[RequestLine]], warm_up: Span, window: Span
) -> Ceiling:
    """Give workers a backlog each of their own, by their device queues, and see what they do of it.

    No scheduler runs: nothing but these workers is busy.

    Args:
        backlogs: requests by worker, more than it can finish.
        warm_up: from the start to the window: until requests end as often as they start.
        window: to measure for.

    Raises:
        BenchmarkError: a worker came to the end of its backlog, or a process ended.
    """
    store = SchedulerStore(cluster.client.redis, POOL, _OWNER, lease_ttl_s=_LEASE_S, result_ttl_s=_RESULT_TTL_S)
    if not await store.hold_lease():
        raise BenchmarkError("a scheduler leads the pool: no private backlogs beside it")
    batches: list[str] = []
    try:
        await store.prepare()
        for worker, requests in backlogs.items():
            batches.append(await _fill(cluster, store, worker, requests))
        await _pass(cluster, list(backlogs), warm_up)
        clock = CpuClock(cluster)
        beats = await _pass(cluster, list(backlogs), window)
        cpu = clock.use()
        await _check_backlogs(cluster, {name: seen[-1] for name, seen in beats.items()})
    finally:
        for batch in batches:
            await cluster.client.cancel(batch)
    await _until_idle(cluster, batches)
    await store.release_lease()
    return Ceiling(
        rates={name: rate_of([_all_tokens(beat) for beat in seen]) for name, seen in beats.items()},
        output_rates={name: rate_of([_output_tokens(beat) for beat in seen]) for name, seen in beats.items()},
        seconds=max(seen[-1].seen - seen[0].seen for seen in beats.values()),
        cpu=cpu,
    )


async def _fill(cluster: RealCluster, store: SchedulerStore, worker: str, requests: Sequence[RequestLine]) -> str:
    """Put requests into a worker's device queue; returns their batch."""
    batch = new_batch_id()
    await cluster.client.submit(requests, batch)
    await cluster.client.seal(batch)
    jobs = await store.read_requests("normal", len(requests))
    closed, dropped = await store.dispatch({worker: [Placement(job, 0, 0, worker) for job in jobs]})
    if closed or dropped or len(jobs) < len(requests):
        raise BenchmarkError(f"worker {worker} does not take its backlog")
    return batch


async def _pass(cluster: RealCluster, workers: Sequence[str], span: Span) -> dict[str, list[Heartbeat]]:
    """Let them work; returns what each of these workers said of itself, once a second from start to end."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    beats: dict[str, list[Heartbeat]] = {name: [] for name in workers}
    while True:
        cluster.check()
        found = await cluster.heartbeats()
        for name, seen in beats.items():
            if not seen or found[name].seen > seen[-1].seen:
                seen.append(found[name])
        done = sum(_all_tokens(seen[-1]).tokens - _all_tokens(seen[0]).tokens for seen in beats.values())
        jobs = min(seen[-1].jobs_total - seen[0].jobs_total for seen in beats.values())
        enough = all(len(seen) > 1 for seen in beats.values())
        if enough and span.is_over(loop.time() - begun, done, jobs):
            return beats
        await asyncio.sleep(1.0)


async def _check_backlogs(cluster: RealCluster, beats: Mapping[str, Heartbeat]) -> None:
    """What has run dry was not saturated."""
    for name, depth in (await cluster.monitor.device_depths(list(beats))).items():
        if depth <= beats[name].running + beats[name].waiting:
            raise BenchmarkError(f"worker {name} came to the end of its backlog: make it longer with --backlog")


async def _until_idle(cluster: RealCluster, batches: Sequence[str]) -> None:
    async def idle() -> bool:
        ended = [(await cluster.client.counts(batch)).complete for batch in batches]
        return all(ended) and all(beat.running == 0 for beat in (await cluster.heartbeats()).values())

    await cluster.until(idle, "the workers did not drop their backlogs", _ABORT_TIMEOUT_S)
    for batch in batches:
        await cluster.client.forget(batch)


def _all_tokens(beat: Heartbeat) -> Sample:
    return Sample(beat.seen, beat.prompt_tokens_total + beat.output_tokens_total)


def _output_tokens(beat: Heartbeat) -> Sample:
    return Sample(beat.seen, beat.output_tokens_total)
