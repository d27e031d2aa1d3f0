"""Ten jobs of one tenant behind a million of another: how much longer they take than alone.

Two workers with simulated engines that take half a second for a job. First the small tenant has the cluster to itself;
then the large one submits all its jobs, and once they flow the small one comes again and again with ten.

Summary: ``alone_s`` and ``behind_s``, medians of the seconds from submission to the last of the ten results, and
``delay_worst_s``: the longest of the latter over the median of the former.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import orjson

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.report import Report, Row, at_least, note, options_parser, run_benchmark, server_name
from benchmarks.requests import MODEL, make_requests
from broker.client import new_batch_id
from broker.profiles import ProfileValues
from broker.throughput import Profile

_WORKERS, _SEATS = 2, 50
#: A job is one step, of half a second.
_DEVICE = Profile(0.5, 0.0, 0.0, 0.5, 0.0, 0.0, kv_tokens=100_000, seats=_SEATS)
_FEW = 10


async def main(options: argparse.Namespace) -> Report:
    """Measure the small tenant alone, then beside the large one."""
    with TemporaryDirectory(prefix="tokenyard-tenants-") as folder:
        profile = Path(folder) / "profile.json"
        profile.write_bytes(orjson.dumps(ProfileValues.of(_DEVICE).model_dump()))
        async with bench_cluster(MODEL, [MODEL]) as cluster:
            await cluster.start_scheduler()
            await cluster.start_workers(_WORKERS, ["--engine", "simulated", "--profile", str(profile)])
            alone = [await _ten(cluster) for _ in range(options.times)]
            note(f"alone: {median(alone):.2f} s")
            await _submit_many(cluster, options.jobs)
            behind = [await _ten(cluster) for _ in range(options.times)]
            left = sum((await cluster.monitor.waiting()).values())
            server = await server_name(cluster.client.redis)
    rows: list[Row] = [
        {"small tenant's ten jobs": name, "times": len(seconds), "median s": median(seconds), "worst s": max(seconds)}
        for name, seconds in (("alone", alone), (f"behind {options.jobs:,} of another", behind))
    ]
    summary = {
        "alone_s": median(alone),
        "behind_s": median(behind),
        "delay_worst_s": max(behind) - median(alone),
    }
    notes = [f"still waiting at the end: {left:,} jobs; {_WORKERS} workers of {_SEATS} seats"]
    return Report("Seconds from submission to the last of ten results", rows, summary, server, notes)


async def _submit_many(cluster: BenchCluster, jobs: int) -> None:
    batch = new_batch_id("large")
    await cluster.client.submit(make_requests(range(jobs)), batch)
    await cluster.client.seal(batch)
    note(f"{jobs:,} jobs of another tenant are there")


async def _ten(cluster: BenchCluster) -> float:
    begun = time.monotonic()
    batch = new_batch_id("small")
    await cluster.client.submit(make_requests(range(_FEW)), batch)
    await cluster.client.seal(batch)
    reading = asyncio.ensure_future(_read(cluster, batch))
    while not reading.done():
        await asyncio.wait([reading], timeout=1)
        cluster.check()
    reading.result()
    return time.monotonic() - begun


async def _read(cluster: BenchCluster, batch: str) -> None:
    async for _ in cluster.client.results(batch):
        pass


def _options() -> argparse.Namespace:
    parser = options_parser("tenants", __doc__ or "")
    parser.add_argument("--jobs", type=at_least(1000), default=1_000_000, help="of the large tenant (1,000,000)")
    parser.add_argument("--times", type=at_least(1), default=10, help="that the small one comes (10)")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
