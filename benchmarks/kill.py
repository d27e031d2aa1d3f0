"""What is killed comes back: the seconds until a pool is as planned again, and what is left over.

Five simulated workers on one host, as the plan says. Again and again ``kill -9`` ends the supervisor, the planner just
as the requests change, so that another plan is due, or a worker in the middle of its start. Supervisor and planner are
started again at once, as a service manager does it. As planned means: the plan is the one for the requests, its workers
are ready, and these processes run and no others. For comparison, the same change of requests without a kill. It is
another worker each time: one that dies again and again within a minute is left alone for longer and longer.

Summary: ``worst_recovery_s`` of all kills, and ``orphans``: worker processes beside the planned ones when the pool has
come back, and processes that are left when supervisor and planner were ended.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from benchmarks.cluster import bench_cluster
from benchmarks.killing.planner import WORKERS
from benchmarks.killing.site import Site
from benchmarks.report import Report, Row, at_least, note, options_parser, run_benchmark, server_name

#: How long the pool is watched after it has come back, for what does not belong there (seconds).
_WATCH_S = 3.0


async def main(options: argparse.Namespace) -> Report:
    """Kill, and see what comes back."""
    ways = {
        "the supervisor": _kill_supervisor,
        "the planner, when the requests change": _kill_planner,
        "a worker in mid-start": _kill_starting_worker,
        "nothing; the requests change": _change,
    }
    rows: list[Row] = []
    async with bench_cluster() as cluster:
        with TemporaryDirectory(prefix="tokenyard-kill-") as folder:
            site = Site(cluster, Path(folder))
            try:
                await site.start()
                for name, way in ways.items():
                    rows.append(await _row(site, name, way, options.kills))
            finally:
                left = await site.close()
        server = await server_name(cluster.client.redis)
    orphans = left + sum(int(row["beside the plan"] or 0) for row in rows)
    killed = rows[:-1]
    summary = {
        "worst_recovery_s": max(float(row["worst s"] or 0) for row in killed),
        "orphans": orphans,
        "kills": sum(int(row["times"] or 0) for row in killed),
    }
    notes = [f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"]
    return Report("Seconds from kill -9 until the pool is as planned", rows, summary, server, notes)


async def _row(site: Site, name: str, way: Callable[[Site, int], Awaitable[float]], times: int) -> Row:
    seconds: list[float] = []
    beside = 0
    for number in range(times):
        begin = await way(site, number)
        await site.until(site.as_planned, f"after killing {name} the pool was not as planned")
        seconds.append(time.monotonic() - begin)
        note(f"{name}: {number + 1} of {times}: {seconds[-1]:.1f} s")
        beside += await _beside_the_plan(site)
    return {
        "killed": name,
        "times": times,
        "median s": median(seconds),
        "worst s": max(seconds),
        "beside the plan": beside,
    }


async def _beside_the_plan(site: Site) -> int:
    """The most worker processes beyond the planned ones that are seen in a while."""
    plan = await site.plan()
    assert plan is not None, "the pool is as planned"
    most = 0
    for _ in range(round(_WATCH_S / 0.1)):
        most = max(most, len(site.workers()) - len(plan.workers))
        await asyncio.sleep(0.1)
    return most


async def _kill_supervisor(site: Site, _: int) -> float:
    before = set(site.workers())
    killed = _kill(site.pids["supervisor"])
    # Before they are gone it looks as planned: their supervisor alone is missing.
    await site.until(_gone(before), "the workers of a killed supervisor were not gone")
    return killed


async def _kill_planner(site: Site, _: int) -> float:
    site.long = not site.long
    return _kill(site.pids["planner"])


async def _kill_starting_worker(site: Site, number: int) -> float:
    before = dict(site.workers())
    _kill(sorted(before, key=before.__getitem__)[number % len(before)])
    started: set[int] = set()

    async def starts() -> bool:
        started.update(site.workers().keys() - before.keys())
        return bool(started)

    await site.until(starts, "a killed worker was not started again")
    return max(_kill(pid) for pid in started)


async def _change(site: Site, _: int) -> float:
    site.long = not site.long
    return time.monotonic()


def _gone(pids: set[int]) -> Callable[[], Awaitable[bool]]:
    async def gone() -> bool:
        return not any(psutil.pid_exists(pid) for pid in pids)

    return gone


def _kill(pid: int) -> float:
    """Kill a process; returns when that was."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def _options() -> argparse.Namespace:
    parser = options_parser("kill", __doc__ or "")
    parser.add_argument("--kills", type=at_least(1), default=WORKERS, help="how often each is killed (5)")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
