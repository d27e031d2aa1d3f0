"""One batch through the cluster, under a policy."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cluster import BenchmarkError
from benchmarks.real.cpu import CpuClock, CpuUse
from benchmarks.real.processes import RealCluster
from broker.client import new_batch_id
from broker.concurrency import cancel_all
from broker.jobs import BatchCounts, Result
from broker.openai_batch import RequestLine

_LOOK_S = 0.5

#: By worker: when, on Redis' clock, and the prompt and output tokens done by then.
Progress = dict[str, list[tuple[float, int]]]


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What one batch took.

    Attributes:
        seconds: from the submit of the first request to the last result read.
        results: one for each request.
        progress: of each worker.
        counts: the batch's own.
        cpu: who used the CPU.
    """

    seconds: float
    results: list[Result]
    progress: Progress
    counts: BatchCounts
    cpu: CpuUse

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return sum(result.prompt_tokens + result.output_tokens for result in self.results)

    @property
    def output_tokens(self) -> int:
        """Output tokens alone."""
        return sum(result.output_tokens for result in self.results)

    @property
    def tokens_per_s(self) -> float:
        """Over the whole time, ramp-up and tail included."""
        return self.tokens / self.seconds

    @property
    def backlog_s(self) -> float:
        """Seconds from the first dispatch to the last: so long there was a backlog."""
        times = [result.dispatched for result in self.results]
        return max(times) - min(times)

    @property
    def backlog_tokens_per_s(self) -> float:
        """Over the time in which there was a backlog."""
        times = [result.dispatched for result in self.results]
        window = [min(times), max(times)]
        done = 0.0
        for points in self.progress.values():
            at, tokens = zip(*points, strict=True)
            first, last = np.interp(window, at, tokens)
            done += float(last - first)
        return done / max(self.backlog_s, 1e-9)

    def jobs_of(self, worker: str) -> int:
        """Requests that it answered."""
        return sum(result.worker == worker for result in self.results)

    def idle_at_end(self) -> dict[str, float]:
        """Seconds from each worker's last result to the last of all."""
        ended: dict[str, float] = {}
        for result in self.results:
            ended[result.worker] = max(ended.get(result.worker, 0.0), result.ended)
        return {name: max(ended.values()) - at for name, at in ended.items()}


async def run_batch(cluster: RealCluster, requests: Sequence[RequestLine], policy: str) -> BatchRun:
    """Run all requests as one batch, under a scheduler of its own.

    Raises:
        BenchmarkError: a request was not answered, or a process ended.
    """
    async with cluster.led_by(policy):
        progress: Progress = defaultdict(list)
        watching = asyncio.ensure_future(_watch(cluster, progress))
        try:
            await _until_watched(cluster, progress, watching)
            batch = new_batch_id()
            clock = CpuClock(cluster)
            began = time.perf_counter()
            working = asyncio.ensure_future(_submit_and_collect(cluster, requests, batch))
            try:
                await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
                if not working.done():
                    watching.result()
                results, ended = working.result()
            finally:
                await cancel_all([working])
            cpu = clock.use()
            await asyncio.sleep(2 * _LOOK_S)  # the last heartbeats of the batch
        finally:
            await cancel_all([watching])
        counts = await cluster.client.counts(batch)
        await cluster.client.forget(batch)
    return BatchRun(ended - began, results, dict(progress), counts, cpu)


async def _submit_and_collect(
    cluster: RealCluster, requests: Sequence[RequestLine], batch: str
) -> tuple[list[Result], float]:
    """All results, and when the last was read."""
    await cluster.client.submit(requests, batch)
    await cluster.client.seal(batch)
    found: list[Result] = []
    ended = 0.0
    async for results in cluster.client.results(batch):
        ended = time.perf_counter()
        found.extend(results)
        for result in results:
            if not result.ok:
                raise BenchmarkError(f"question {result.custom_id}: {result.error_message or result.body[:200]}")
    if len(found) != len(requests):
        raise BenchmarkError(f"{len(found)} of {len(requests)} questions were answered")
    return found, ended


async def _watch(cluster: RealCluster, progress: Progress) -> None:
    while True:
        cluster.check()
        for name, beat in (await cluster.heartbeats()).items():
            points = progress[name]
            if not points or beat.seen > points[-1][0]:
                points.append((beat.seen, beat.prompt_tokens_total + beat.output_tokens_total))
        await asyncio.sleep(_LOOK_S)


async def _until_watched(cluster: RealCluster, progress: Progress, watching: asyncio.Task[None]) -> None:
    async def watched() -> bool:
        if watching.done():
            watching.result()
        return len(progress) == len(cluster.workers)

    await cluster.until(watched, "the workers did not say how they are", 10.0)
