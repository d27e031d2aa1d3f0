"""Two million prompts from a generator through the Python client, which is killed twice with ``kill -9`` on the way.

Server, scheduler, simulated workers and client are processes of their own. The client is killed once while it submits
and once while it reads, and started again with the same call each time. With ``--map`` one client submits and reads at
once, and nobody is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from benchmarks.cluster import INSTANT_ENGINE, BenchCluster, BenchmarkError, bench_cluster, peak_memory_bytes
from benchmarks.report import Report, at_least, note, options_parser, run_benchmark, server_name
from benchmarks.requests import MODEL

_BATCH = "stream"
#: The first client is killed when this share of the prompts is queued (or as soon as it is seen to have passed that).
_KILL_SUBMITTING_AT = 0.4
_LOOK_S = 0.02


async def main(options: argparse.Namespace) -> Report:
    """Run the client three times, of which two are killed; or once, where it maps."""
    jobs: int = options.jobs
    async with bench_cluster(MODEL, [MODEL]) as cluster:
        await cluster.start_scheduler()
        await cluster.start_workers(options.workers, INSTANT_ENGINE)
        run = _Runs(cluster, jobs)
        if options.map:
            rows = [await run.at_once()]
        else:
            rows = [await run.killed_while_submitting(), await run.killed_while_reading(), await run.to_the_end()]
        ran = await _jobs_ran(cluster)
        server = await server_name(cluster.client.redis)
    last = rows[-1]
    summary = {
        "peak_mb": max(row["peak_mb"] for row in rows),
        "lost": last["lost"],
        "doubled": last["doubled"] + max(0, ran - jobs),
        "strange": last["strange"],
        "failed": last["failed"],
        "known_again": last["known"] or 0,
    }
    notes = [f"{ran:,} jobs ran on the workers for {jobs:,} prompts"]
    title = "Prompts from a generator through " + ("one map" if options.map else "a client that is killed")
    return Report(title, rows, summary, server, notes)


class _Runs:
    """Clients, one after the other."""

    def __init__(self, cluster: BenchCluster, jobs: int) -> None:
        self._cluster = cluster
        self._jobs = jobs

    async def killed_while_submitting(self) -> dict[str, Any]:
        begun = time.monotonic()
        client = await self._start()
        peak = await self._kill_when(client, self._partly_queued)
        queued = (await self._cluster.client.counts(_BATCH)).total
        note(f"killed with {queued:,} of {self._jobs:,} queued, {peak / 1e6:.0f} MB")
        return _row("killed while it submits", begun, peak, queued=queued)

    async def killed_while_reading(self) -> dict[str, Any]:
        begun = time.monotonic()
        client = await self._start()
        submitted = await _said(client)
        peak = await self._kill_when(client, _at_once)
        note(f"killed while it reads, {peak / 1e6:.0f} MB")
        return _row("killed while it reads", begun, peak, **submitted)

    async def to_the_end(self) -> dict[str, Any]:
        begun = time.monotonic()
        client = await self._start()
        submitted = await _said(client)
        found = await _said(client)
        await client.wait()
        return _row("to the end", begun, found.pop("peak_bytes"), **submitted | found)

    async def at_once(self) -> dict[str, Any]:
        begun = time.monotonic()
        client = await self._start("--map")
        found = await _said(client)
        await client.wait()
        return _row("maps", begun, found.pop("peak_bytes"), **found)

    async def _start(self, *options: str) -> Process:
        words = ["-m", "benchmarks.streaming_client", self._cluster.redis_url, _BATCH, str(self._jobs), *options]
        root = Path(__file__).parent.parent
        return await asyncio.create_subprocess_exec(sys.executable, *words, cwd=root, stdout=PIPE)

    async def _kill_when(self, client: Process, condition: Callable[[], Awaitable[bool]]) -> int:
        """Kill the client; returns its peak memory in bytes."""
        while not await condition():
            if client.returncode is not None:
                raise BenchmarkError("the client ended by itself: see above")
            await asyncio.sleep(_LOOK_S)
        if client.returncode is not None:
            raise BenchmarkError("the client was done before it could be killed: give more --jobs")
        peak = peak_memory_bytes(client.pid)
        client.kill()
        await client.wait()
        return peak

    async def _partly_queued(self) -> bool:
        store = self._cluster.client.store(self._cluster.monitor.pool)
        return await store.total(_BATCH) >= _KILL_SUBMITTING_AT * self._jobs


async def _at_once() -> bool:
    return True


async def _said(client: Process) -> dict[str, int]:
    """The next line of the client."""
    assert client.stdout is not None
    line = await client.stdout.readline()
    if not line:
        raise BenchmarkError("the client ended by itself: see above")
    return orjson.loads(line)


async def _jobs_ran(cluster: BenchCluster) -> int:
    """Jobs that the workers ended; their heartbeats come a moment later."""
    before = -1
    while True:
        beats = (await cluster.monitor.heartbeats()).values()
        ran = sum(beat.jobs_total for beat in beats if beat is not None)
        if ran == before:
            return ran
        before = ran
        await asyncio.sleep(1.5)


def _row(run: str, begun: float, peak: int, **found: Any) -> dict[str, Any]:
    columns = ("accepted", "known", "lost", "doubled", "strange", "failed")
    values = {name: found.get(name) for name in columns}
    return {"client": run, "seconds": time.monotonic() - begun, "peak_mb": peak / 1e6, **values}


if __name__ == "__main__":
    parser = options_parser("client_stream", __doc__ or "")
    parser.add_argument("--jobs", type=at_least(1000), default=2_000_000, help="prompts")
    parser.add_argument("--workers", type=at_least(1), default=2, help="simulated workers that take no time")
    parser.add_argument("--map", action="store_true", help="one client, which submits and reads at once")
    chosen = parser.parse_args()
    run_benchmark(main(chosen), chosen)
