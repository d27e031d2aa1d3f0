"""A pool that planner and supervisor keep in shape, under the load of a day."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from benchmarks.cluster import POOL, BenchCluster, BenchmarkError, Process
from benchmarks.resizing.day import Day
from benchmarks.resizing.shapes import HOST, Menu
from broker.client import Client
from broker.concurrency import cancel_all
from broker.openai_batch import RequestLine
from broker.pool_plan import PoolPlan
from broker.recent_mix import MixClass, RecentMix
from broker.store.plans import PlanStore
from planner.replanning import LookTerms, Replanner
from planner.resizing import ResizeTerms
from planner.simulated import Requests
from planner.tasks import PlannerProcess, PlannerTasks
from workers.engines.simulated_wire import OUTPUT_TOKENS_KEY, filler

MODEL = "simulated"
BATCH = "day"
_PACE_S = 0.2


@dataclass(slots=True)
class LiveRun:
    """What became of the day.

    Attributes:
        submitted: requests.
        results: results of each custom_id.
        failed: requests that failed.
        seconds: from the first submission to the last result.
        tokens: prompt and output tokens of all results.
        changes: plans that were written after the first.
        shapes: what each of them was, and when (seconds from the start).
        workers: mean number of workers that ran.
    """

    submitted: int = 0
    results: Counter[str] = field(default_factory=Counter[str])
    failed: int = 0
    seconds: float = 0.0
    tokens: int = 0
    changes: int = 0
    shapes: list[str] = field(default_factory=list[str])
    workers: float = 0.0


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the planner looks and how much it wants to see, in seconds; the supervisor's scaling likewise."""

    every_s: float
    mix_s: float
    least_interval_s: float
    drain_s: float
    cool_down_s: float


async def run_live(cluster: BenchCluster, folder: Path, day: Day, requests: Requests, cadence: Cadence) -> LiveRun:
    """Play the day against a pool that is planned and supervised."""
    menu = Menu(folder)
    plans = PlanStore(cluster.client.redis, POOL)
    first = menu.plan(day.best(0.0), _mix_of(day, 0.0))
    await plans.write(first, await plans.read())
    supervisor = await _start_supervisor(cluster, folder, cadence)
    run = LiveRun()
    tasks: list[asyncio.Task[None]] = []
    try:
        await cluster.until(lambda: _serves(cluster), "no worker became ready", 60)
        begin = time.time()
        tasks.append(asyncio.ensure_future(_planner(cluster, menu, cadence).run()))
        tasks.append(asyncio.ensure_future(_watch(cluster, plans, supervisor, run, begin)))
        feeding = asyncio.ensure_future(_feed(cluster.client, requests, run))
        tasks.append(feeding)
        await _collect(cluster.client, run, begin, tasks)
    finally:
        await cancel_all(tasks)
        await supervisor.stop()
    return run


def _planner(cluster: BenchCluster, menu: Menu, cadence: Cadence) -> PlannerProcess:
    terms = ResizeTerms(
        horizon_s=10 * cadence.every_s,
        least_interval_s=cadence.least_interval_s,
        looks=3,
        hold_s=1.5 * cadence.every_s,
    )
    replanner = Replanner(cluster.client.redis, POOL, menu, LookTerms(cadence.mix_s, 0.0, terms))
    return PlannerProcess(cluster.redis_url, POOL, PlannerTasks(replanner, _measures_nothing), cadence.every_s)


async def _measures_nothing(options: Sequence[str], host: str) -> str:
    raise BenchmarkError(f"nobody asks to measure {options} on {host}")


async def _start_supervisor(cluster: BenchCluster, folder: Path, cadence: Cadence) -> Process:
    words = ["supervisor", "--pool", POOL, "--host", HOST, "--model", MODEL]
    words += ["--drain-s", str(cadence.drain_s), "--cool-down-s", str(cadence.cool_down_s)]
    environment = {"TOKENYARD_REDIS_URL": cluster.redis_url, "TOKENYARD_STATE_DIR": str(folder), "NO_COLOR": "1"}
    supervisor = Process("supervisor", words, log_dir=folder, environment=environment)
    await supervisor.start()
    return supervisor


async def _serves(cluster: BenchCluster) -> bool:
    return any(beat is not None and beat.state == "ready" for beat in (await cluster.monitor.heartbeats()).values())


async def _watch(cluster: BenchCluster, plans: PlanStore, supervisor: Process, run: LiveRun, begin: float) -> None:
    """Count the plans, and the workers that run."""
    token, looks, running = await plans.token(), 0, 0
    while True:
        cluster.check()
        if supervisor.ended:
            raise BenchmarkError(f"the supervisor ended: {supervisor.how_it_ended()}")
        beats = await cluster.monitor.heartbeats()
        running += sum(beat is not None for beat in beats.values())
        looks += 1
        run.workers = running / looks
        if await plans.token() != token:
            stored = await plans.read()
            token = stored.token
            run.changes += 1
            run.shapes.append(f"{_shape(stored.plan)} at {time.time() - begin:.0f} s")
        await asyncio.sleep(1)


async def _feed(client: Client, requests: Requests, run: LiveRun) -> None:
    """Submit each request when its time has come."""
    begin = time.monotonic()
    lines = _lines(requests)
    arrivals = requests.arrivals
    while run.submitted < len(arrivals):
        due = int((arrivals <= time.monotonic() - begin).sum()) - run.submitted
        if due:
            report = await client.submit([next(lines) for _ in range(due)], BATCH)
            if report.refused:
                raise BenchmarkError(f"refused: {report.refused[0]}")
            run.submitted += due
        await asyncio.sleep(_PACE_S)
    await client.seal(BATCH)


async def _collect(client: Client, run: LiveRun, begin: float, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Take results until the batch is complete; an error of a task ends it."""
    while not run.submitted:
        await asyncio.sleep(_PACE_S)
        _check(tasks)
    async for results in client.results(BATCH):
        _check(tasks)
        for result in results:
            run.results[result.custom_id] += 1
            run.failed += not result.ok
            run.tokens += result.prompt_tokens + result.output_tokens
            run.seconds = max(run.seconds, result.ended - begin)


def _check(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def _lines(requests: Requests) -> Iterator[RequestLine]:
    pairs = zip(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
    for number, (prompt, output) in enumerate(pairs):
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": filler(prompt)}],
            "max_completion_tokens": 600,
            "metadata": {OUTPUT_TOKENS_KEY: str(output)},
        }
        yield RequestLine(str(number), "/v1/chat/completions", MODEL, orjson.dumps(body), 600, number + 1)


def _mix_of(day: Day, at: float) -> RecentMix:
    """The mix of that time, as if a hundred jobs of it had ended."""
    jobs = [max(round(100 * c.jobs), 1) for c in day.classes(at)]
    return RecentMix(
        tuple(
            MixClass(n, round(n * c.work.prompt), round(n * (c.work.steps + 1)))
            for n, c in zip(jobs, day.classes(at), strict=True)
        )
    )


def _shape(plan: PoolPlan | None) -> str:
    return plan.workers[0].name.rpartition("-")[0] if plan is not None and plan.workers else "none"
