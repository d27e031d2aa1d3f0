"""Jobs a second through client, scheduler, device queues and workers that take no time, beside other job queues.

Everything but the engine is real, and each part a process of its own. The clock runs from the first submit to the
last result read, and every request must come back exactly once. Each system gets a fresh server of the same kind.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cluster import INSTANT_ENGINE, BenchCluster, BenchmarkError, bench_cluster
from benchmarks.peers import ENVIRONMENTS, PEERS, PeerError, run_peer
from benchmarks.report import Report, Row, Value, at_least, note, options_parser, run_benchmark, server_name
from benchmarks.requests import MODEL, make_requests
from benchmarks.scheduler_memory import scheduler_peak_mb
from broker.client import Client, new_batch_id
from tokenyard.embedded_server import EmbeddedServer

OURS = "tokenyard"
#: As many as the peers get before their clock starts.
_WARM_UP_JOBS = 200
#: A reader asks for a batch that is there: so many requests are submitted before it starts.
_FIRST_JOBS = 250
_ROLES = ("client", "server", "scheduler", "workers")
_CPU_NOTE = "cpu: CPU time for each job (microseconds), by role"


async def main(options: argparse.Namespace) -> Report:
    """Measure every system ``--repeat`` times, in turns, then the scheduler's memory."""
    peers = _wanted_peers(options.peers)
    rows: list[Row] = []
    server = ""
    for turn in range(options.repeat):
        row, server = await _measure_ours(options.jobs, options.payload, options.workers)
        rows.append(row)
        note(f"{OURS}: {row['jobs_per_s']:,.0f} jobs/s (run {turn + 1} of {options.repeat})")
        rows.extend([await _measure_peer(peer, options.jobs, options.payload) for peer in peers])
    summary = _summary(rows, peers)
    if options.waiting:
        note(f"submitting {options.waiting:,} jobs for the scheduler to hold")
        summary["scheduler_peak_mb"] = await scheduler_peak_mb(options.waiting)
    return Report("Jobs through the whole broker path", rows, summary, server, [_CPU_NOTE])


async def _measure_ours(jobs: int, payload: int, workers: int) -> tuple[Row, str]:
    async with bench_cluster(MODEL, [MODEL]) as cluster:
        await cluster.start_scheduler()
        await cluster.start_workers(workers, INSTANT_ENGINE)
        await _run_batch(cluster, _WARM_UP_JOBS, payload)
        before = cluster.cpu_seconds()
        seconds = await _run_batch(cluster, jobs, payload)
        after = cluster.cpu_seconds()
        cpu = {f"{role}_cpu": (after[role] - before[role]) / jobs * 1e6 for role in _ROLES}
        return _row(OURS, jobs, seconds) | cpu, await server_name(cluster.client.redis)


def _row(system: str, jobs: int, seconds: float | None) -> dict[str, Value]:
    speed = None if seconds is None else jobs / seconds
    return {"system": system, "jobs": jobs, "seconds": seconds, "jobs_per_s": speed} | {
        f"{r}_cpu": None for r in _ROLES
    }


async def _run_batch(cluster: BenchCluster, jobs: int, payload: int) -> float:
    """Seconds from the first submit to the last result."""
    batch = new_batch_id()
    begin = time.perf_counter()
    await cluster.client.submit(make_requests(range(min(jobs, _FIRST_JOBS)), payload), batch)
    reading = asyncio.ensure_future(_read(cluster.client, batch, jobs))
    try:
        await cluster.client.submit(make_requests(range(_FIRST_JOBS, jobs), payload), batch)
        await cluster.client.seal(batch)
        while not reading.done():
            await asyncio.wait([reading], timeout=1)
            cluster.check()
        reading.result()
    finally:
        reading.cancel()
    return time.perf_counter() - begin


async def _read(client: Client, batch: str, jobs: int) -> None:
    """Read every result; each request must have one, and one only."""
    seen: Counter[str] = Counter()
    failed = 0
    async for results in client.results(batch):
        seen.update(result.custom_id for result in results)
        failed += sum(not result.ok for result in results)
    doubled = seen.total() - len(seen)
    if failed or doubled or len(seen) != jobs:
        raise BenchmarkError(f"of {jobs} jobs {len(seen)} came back, {doubled} of them again, {failed} failed")


def _wanted_peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        raise BenchmarkError(f"--peers {unknown[0]}: choose from {','.join(PEERS)}")
    if missing := [name for name in names if not (ENVIRONMENTS / name / "bin" / "python").exists()]:
        raise BenchmarkError(
            f"not installed: {', '.join(missing)}: run `make bench-peers-setup`, or leave them out with --peers ''"
        )
    return names


async def _measure_peer(peer: str, jobs: int, payload: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="tokenyard-bench-") as folder:
        async with EmbeddedServer(Path(folder)) as server:
            try:
                result = await asyncio.to_thread(run_peer, peer, server.url, jobs, payload)
            except PeerError as error:
                note(str(error))
                return _row(peer, jobs, None)
    note(f"{peer}: {result.jobs_per_s:,.0f} jobs/s")
    return _row(peer, jobs, result.seconds)


def _summary(rows: Sequence[Row], peers: Sequence[str]) -> dict[str, Value]:
    """Medians over the repeats."""
    ours = _median_speed(rows, OURS)
    theirs = [speed for peer in peers if (speed := _median_speed(rows, peer)) is not None]
    ratio = ours / max(theirs) if ours is not None and theirs else None
    return {"jobs_per_s": ours, "ratio_to_best_peer": ratio}


def _median_speed(rows: Sequence[Row], system: str) -> float | None:
    speeds = [row["jobs_per_s"] for row in rows if row["system"] == system]
    measured = [speed for speed in speeds if isinstance(speed, float)]
    return statistics.median(measured) if measured else None


def _options() -> argparse.Namespace:
    parser = options_parser("broker_path", __doc__ or "")
    parser.add_argument("--jobs", type=at_least(1), default=20_000)
    parser.add_argument("--payload", type=at_least(1), default=1024, help="bytes of a request's body")
    parser.add_argument(
        "--workers", type=at_least(1), default=2, help="our worker processes; the peers always have two"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="queues to compare with; '' for none")
    parser.add_argument(
        "--waiting", type=at_least(0), default=1_000_000, help="jobs in front of the scheduler; 0: leave out"
    )
    parser.add_argument("--repeat", type=at_least(1), default=1, help="runs of each system; the median counts")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
