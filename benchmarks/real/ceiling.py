"""The ceiling: what each worker does from a private backlog, while all the others do the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cluster import BenchmarkError
from benchmarks.real.cpu import CpuClock, CpuUse
from benchmarks.real.processes import POOL, RealCluster
from broker.client import new_batch_id
from broker.heartbeat import Heartbeat
from broker.openai_batch import RequestLine
from broker.policies.base import Placement
from broker.store.scheduler import SchedulerStore

_OWNER = "private-backlogs"
_LEASE_S = 3600.0
_RESULT_TTL_S = 3600
_ABORT_TIMEOUT_S = 60.0


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
    cluster: RealCluster, backlogs: Mapping[str, Sequence[RequestLine]], warm_up_s: float, window_s: float
) -> Ceiling:
    """Give workers a backlog each of their own, by their device queues, and see what they do of it.

    No scheduler runs: nothing but these workers is busy.

    Args:
        backlogs: requests by worker, more than it can finish.
        warm_up_s: seconds from the start to the window: until requests end as often as they start.
        window_s: seconds to measure for.

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
        await _pass(cluster, warm_up_s)
        clock = CpuClock(cluster)
        before = await cluster.heartbeats()
        await _pass(cluster, window_s)
        after = await cluster.heartbeats()
        cpu = clock.use()
        await _check_backlogs(cluster, {name: after[name] for name in backlogs})
    finally:
        for batch in batches:
            await cluster.client.cancel(batch)
    await _until_idle(cluster, batches)
    await store.release_lease()
    return Ceiling(
        rates={name: _rate(before[name], after[name], output_only=False) for name in backlogs},
        output_rates={name: _rate(before[name], after[name], output_only=True) for name in backlogs},
        seconds=window_s,
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


async def _pass(cluster: RealCluster, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        await asyncio.sleep(min(left, 1.0))
        cluster.check()


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


def _rate(before: Heartbeat, after: Heartbeat, *, output_only: bool) -> float:
    """Tokens a second between two heartbeats, by the moments in which they were given."""
    tokens = after.output_tokens_total - before.output_tokens_total
    if not output_only:
        tokens += after.prompt_tokens_total - before.prompt_tokens_total
    return tokens / (after.seen - before.seen)
