"""Peak memory of a scheduler in front of a long queue; see ``benchmarks.broker_path``."""

from __future__ import annotations

import asyncio

from benchmarks.cluster import INSTANT_ENGINE, POOL, BenchCluster, BenchmarkError, bench_cluster, peak_memory_bytes
from benchmarks.report import note
from benchmarks.requests import MODEL, make_requests
from broker import keys
from broker.client import Client, new_batch_id
from broker.jobs import Priority
from broker.settings import load_settings

#: Jobs that the worker ends before the memory is read: the scheduler has dispatched for a while then.
_DISPATCHED = 10_000
_TIMEOUT_S = 120


async def scheduler_peak_mb(waiting: int) -> float:
    """Peak memory (10^6 bytes) of a scheduler process that takes over so many waiting jobs, then dispatches some.

    The jobs lie in all three priorities, so that each of its windows fills.

    Raises:
        BenchmarkError: it did not get so far.
    """
    async with bench_cluster(MODEL, [MODEL]) as cluster:
        batch = new_batch_id()
        await _submit(cluster.client, batch, waiting)
        scheduler = await cluster.start_scheduler()
        await cluster.until(lambda: _windows_full(cluster, waiting), "the scheduler's window did not fill", _TIMEOUT_S)
        note(f"window full: {peak_memory_bytes(scheduler.pid) / 1e6:.0f} MB with {waiting:,} jobs waiting")
        await cluster.start_workers(1, INSTANT_ENGINE)
        goal = min(_DISPATCHED, waiting)
        await cluster.until(lambda: _has_ended(cluster.client, batch, goal), "the jobs were not dispatched", _TIMEOUT_S)
        return peak_memory_bytes(scheduler.pid) / 1e6


async def _submit(client: Client, batch: str, jobs: int) -> None:
    levels = list(Priority)
    parts = [range(start, jobs, len(levels)) for start in range(len(levels))]
    reports = await asyncio.gather(
        *(client.submit(make_requests(part), batch, priority=level) for part, level in zip(parts, levels, strict=True))
    )
    accepted = sum(report.accepted for report in reports)
    if accepted != jobs:
        raise BenchmarkError(f"only {accepted} of {jobs} jobs were accepted")


async def _windows_full(cluster: BenchCluster, jobs: int) -> bool:
    """Whether the scheduler has read, of each level, as much as it holds at once."""
    pool = keys.PoolKeys(POOL)
    window = load_settings().window_jobs
    for start, level in enumerate(Priority):
        pending = await cluster.client.redis.xpending(pool.requests(level.value), keys.SCHEDULER_GROUP)
        if pending["pending"] < min(window, len(range(start, jobs, len(Priority)))):
            return False
    return True


async def _has_ended(client: Client, batch: str, jobs: int) -> bool:
    return (await client.counts(batch)).ended >= jobs
