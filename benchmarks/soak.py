"""A day of work compressed: a million jobs through workers that take no time, and the memory of every process.

Batch after batch is submitted, read and forgotten, as a pipeline does that runs for weeks. What every process holds is
looked at when all are warm, in the middle and at the end: a process that keeps something of each job grows, one that
does not is flat.

Summary: ``lost`` and ``doubled`` results, jobs a second, and the end's memory over that of the start: the largest of
all processes (``growth``), and of what Redis says that it uses (``redis_growth``).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from benchmarks.cluster import INSTANT_ENGINE, BenchCluster, bench_cluster
from benchmarks.report import Report, Row, at_least, note, options_parser, run_benchmark, server_name
from benchmarks.requests import MODEL, make_requests
from broker.client import Client, new_batch_id

#: Requests that are there before a reader asks for their batch.
_FIRST_JOBS = 250


@dataclass(slots=True)
class _Tally:
    """What came back."""

    lost: int = 0
    doubled: int = 0
    looks: list[Row] = field(default_factory=list[Row])


async def main(options: argparse.Namespace) -> Report:
    """Run all batches, and look three times."""
    batches = -(-options.jobs // options.batch)
    looks = {max(2, batches // 10): "start", batches // 2: "middle", batches: "end"}
    tally = _Tally()
    async with bench_cluster(MODEL, [MODEL]) as cluster:
        await cluster.start_scheduler()
        await cluster.start_workers(options.workers, INSTANT_ENGINE)
        began = time.perf_counter()
        for number in range(1, batches + 1):
            jobs = min(options.batch, options.jobs - (number - 1) * options.batch)
            await _run_batch(cluster, jobs, options.payload, tally)
            if moment := looks.get(number):
                tally.looks.append(await _look(cluster, moment, (number - 1) * options.batch + jobs))
                note(f"{moment}: {tally.looks[-1]['jobs']:,} jobs after {time.perf_counter() - began:.0f} s")
        seconds = time.perf_counter() - began
        server = await server_name(cluster.client.redis)
    first, last = tally.looks[0], tally.looks[-1]
    growth = {name: _ratio(last[name], first[name]) for name in first if str(name).endswith("MB") and name != "its MB"}
    redis = growth.pop("redis uses MB")
    summary = {
        "lost": tally.lost,
        "doubled": tally.doubled,
        "jobs_per_s": options.jobs / seconds,
        "growth": max(growth.values()),
        "redis_growth": redis,
        "keys_left": last["keys"],
    }
    return Report("Memory of every process", tally.looks, summary, server)


async def _run_batch(cluster: BenchCluster, jobs: int, payload: int, tally: _Tally) -> None:
    """Submit, read and forget one batch."""
    batch = new_batch_id()
    client = cluster.client
    await client.submit(make_requests(range(min(jobs, _FIRST_JOBS)), payload), batch)
    reading = asyncio.ensure_future(_read(client, batch))
    try:
        await client.submit(make_requests(range(_FIRST_JOBS, jobs), payload), batch)
        await client.seal(batch)
        while not reading.done():
            await asyncio.wait([reading], timeout=1)
            cluster.check()
        seen = reading.result()
    finally:
        reading.cancel()
    tally.lost += jobs - len(seen)
    tally.doubled += seen.total() - len(seen)
    await client.forget(batch)


async def _read(client: Client, batch: str) -> Counter[str]:
    seen: Counter[str] = Counter()
    async for results in client.results(batch):
        seen.update(result.custom_id for result in results if result.ok)
    return seen


async def _look(cluster: BenchCluster, moment: str, jobs: int) -> Row:
    """Memory (resident, MB) of every process, what Redis says it uses, and its keys."""
    memory = await cluster.client.redis.info("memory")
    assert cluster.scheduler is not None, "it was started"
    processes = {"client": psutil.Process().pid, "scheduler": cluster.scheduler.pid}
    processes |= {worker.name: worker.pid for worker in cluster.workers}
    row: dict[str, str | int | float | None] = {"moment": moment, "jobs": jobs}
    row |= {f"{name} MB": _resident_mb(pid) for name, pid in processes.items()}
    row |= {"redis MB": memory["used_memory_rss"] / 2**20, "redis uses MB": memory["used_memory"] / 2**20}
    name, size = await _largest_key(cluster)
    return row | {"keys": await cluster.client.redis.dbsize(), "largest key": name, "its MB": size}


async def _largest_key(cluster: BenchCluster) -> tuple[str, float]:
    redis = cluster.client.redis
    sizes = {name: await redis.memory_usage(name, samples=0) or 0 async for name in redis.scan_iter()}
    largest = max(sizes, key=lambda name: sizes[name])
    return largest.decode(), sizes[largest] / 2**20


def _resident_mb(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def _ratio(last: object, first: object) -> float:
    assert isinstance(last, float), "megabytes"
    assert isinstance(first, float), "megabytes"
    return last / first


def _options() -> argparse.Namespace:
    parser = options_parser("soak", __doc__ or "")
    parser.add_argument("--jobs", type=at_least(1000), default=1_000_000, help="jobs in all (1,000,000)")
    parser.add_argument("--batch", type=at_least(300), default=10_000, help="jobs of a batch (10,000)")
    parser.add_argument("--payload", type=at_least(1), default=1024, help="bytes of a request's body (1,024)")
    parser.add_argument("--workers", type=at_least(1), default=2, help="worker processes (2)")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
