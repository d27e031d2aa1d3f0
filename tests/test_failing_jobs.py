"""Jobs that fail in a running cluster: they are tried again, time out, expire, or kill their workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from cluster_fixtures import (
    CHAT,
    Cluster,
    ManualEngine,
    RunningWorker,
    cluster_of,
    eventually,
    exactly_once,
)

from broker.client import SubmitOptions, new_batch_id
from broker.jobs import BATCH_CANCELLED, BATCH_EXPIRED, REQUEST_TIMEOUT, Result
from broker.openai_batch import RequestLine
from broker.store.dead import DeadLetterStore
from workers.engines.base import EngineRequest, EngineResponse


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        running.schedule()
        yield running


async def submit(cluster: Cluster, count: int, *, timeout_s: float = 0.0, completion_window_s: float = 0.0) -> str:
    batch = new_batch_id()
    options = SubmitOptions(timeout_s=timeout_s, completion_window_s=completion_window_s)
    await cluster.client.submit(cluster.requests(count), batch, options=options)
    await cluster.client.seal(batch)
    return batch


class Moody(ManualEngine):
    """Refuses each request so often for the time being, then answers."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times
        self.asked: dict[str, int] = {}

    async def run(self, request: EngineRequest) -> EngineResponse:
        job, *_ = request.job_id.rsplit("-", 2)
        self.asked[job] = self.asked.get(job, 0) + 1
        status = 503 if self.asked[job] <= self._times else 200
        return EngineResponse(status, b'{"error": {"message": "busy"}}', 10, 5 * (status == 200))


class TestRetry:
    async def test_what_passes_is_no_failure(self, cluster: Cluster) -> None:
        await cluster.join("w", Moody(2))
        results = await cluster.collect(await cluster.submit(5))
        exactly_once(results, 5)
        assert {r.attempt for r in results} == {3}

    async def test_what_does_not_pass_is_asked_as_often_as_it_may_and_no_more(self, cluster: Cluster) -> None:
        engine = Moody(100)
        await cluster.join("w", engine)
        results = await cluster.collect(await cluster.submit(5))
        assert [r.status_code for r in results] == [503] * 5
        assert set(engine.asked.values()) == {3}
        assert await DeadLetterStore(cluster.redis, cluster.settings.pool).count() == 5


class TestTimeout:
    async def test_a_request_that_takes_too_long_is_aborted_and_fails_in_the_end(self, cluster: Cluster) -> None:
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await submit(cluster, 1, timeout_s=0.05)
        [result] = await cluster.collect(batch)
        assert (result.error_code, result.attempt) == (REQUEST_TIMEOUT, 3)
        assert "0.05 s" in result.error_message
        assert len(engine.aborted) == 3


class TestCompletionWindow:
    async def over(self, cluster: Cluster, batch: str) -> None:
        """The batch's window is over now."""
        await cluster.redis.zadd(cluster.keys.windows, {batch: 1})

    async def test_what_waits_expires_without_any_worker(self, cluster: Cluster) -> None:
        await cluster.register_model()
        batch = await submit(cluster, 20, completion_window_s=1000)
        await eventually(lambda: cluster.all_read(20))
        await self.over(cluster, batch)
        results = await cluster.collect(batch)
        assert [r.error_code for r in results] == [BATCH_EXPIRED] * 20
        assert await cluster.waiting() == 0

    async def test_by_the_clock(self, cluster: Cluster) -> None:
        await cluster.register_model()
        batch = await submit(cluster, 2, completion_window_s=0.1)
        assert [r.error_code for r in await cluster.collect(batch)] == [BATCH_EXPIRED] * 2

    async def test_what_runs_is_aborted(self, cluster: Cluster) -> None:
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await submit(cluster, 7, completion_window_s=1000)
        await eventually(lambda: len(engine.running) == 5)
        engine.finish(1)
        await eventually(lambda: cluster.done(batch, 1))
        await self.over(cluster, batch)
        results = await cluster.collect(batch)
        assert sorted(r.error_code for r in results) == [""] + [BATCH_EXPIRED] * 6
        assert len(engine.aborted) >= 4
        assert not engine.running
        assert (await cluster.client.counts(batch)).state == "expired"


class TestCancelJobs:
    async def test_it_reaches_into_the_engine_and_into_the_queue(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=1)
        await cluster.join("w", engine)
        batch = await cluster.submit(5)
        await eventually(lambda: len(engine.running) == 2)
        running = {job.rsplit("-", 2)[0] for job in engine.running}
        assert await cluster.client.cancel_jobs(batch, ["r0", "r1", "r2", "r3", "none"]) == 4
        await eventually(lambda: engine.aborted)
        assert {job.rsplit("-", 2)[0] for job in engine.aborted} <= running
        await eventually(lambda: _no_more_waits(cluster))
        await cluster.finish(batch, engine)
        results = await cluster.collect(batch)
        assert sorted(r.error_code for r in results) == [""] + [BATCH_CANCELLED] * 4
        assert [r.custom_id for r in results if r.ok] == ["r4"]


async def _no_more_waits(cluster: Cluster) -> bool:
    return await cluster.waiting() == 0


class Crashing(ManualEngine):
    """Answers at once; one request kills its worker, and all beside it wait for that."""

    def __init__(self) -> None:
        super().__init__(seats=32)
        self.killed = asyncio.Event()

    async def run(self, request: EngineRequest) -> EngineResponse:
        self.started.append(request.job_id.rsplit("-", 2)[0])
        if b"KILL" in request.body:
            self.killed.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0.02)  # long enough for a killer beside it to come first
        return EngineResponse(200, b"{}", 10, 5)


class CrashLoop:
    """A worker that is started again whenever it was killed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.crashes = 0
        self.started: list[str] = []

    async def run(self, *, same_name: bool) -> None:
        while True:
            engine = Crashing()
            name = "w" if same_name else f"w{self.crashes}"
            worker: RunningWorker = await self.cluster.join(name, engine)
            try:
                await engine.killed.wait()
            finally:
                self.started += engine.started
            await worker.kill()
            self.crashes += 1


async def submit_with_killer(cluster: Cluster, good: int) -> str:
    body = orjson.dumps({"model": cluster.model, "messages": [{"role": "user", "content": "KILL"}], "max_tokens": 3})
    killer = RequestLine("killer", CHAT, cluster.model, body, 3, 1)
    batch = new_batch_id()
    await cluster.client.submit([killer, *cluster.requests(good)], batch)
    await cluster.client.seal(batch)
    return batch


def by_custom_id(results: list[Result]) -> dict[str, Result]:
    found = {r.custom_id: r for r in results}
    assert len(found) == len(results)
    return found


@pytest.mark.parametrize("same_name", [True, False])
async def test_a_job_that_kills_its_worker_is_given_up_and_the_twenty_behind_it_are_done(
    redis_url: str, pool: str, same_name: bool
) -> None:
    async with cluster_of(redis_url, pool, dead_after_s=1.2) as cluster:
        await cluster.register_model()
        cluster.schedule()
        batch = await submit_with_killer(cluster, 20)
        loop = CrashLoop(cluster)
        crashing = asyncio.ensure_future(loop.run(same_name=same_name))
        try:
            results = by_custom_id(await cluster.collect(batch))
        finally:
            crashing.cancel()
        killer = results.pop("killer")
        assert all(r.ok for r in results.values())
        assert len(results) == 20
        assert (killer.error_code, killer.attempt) == ("attempts_exhausted", 3)
        assert loop.crashes == 3
        store = DeadLetterStore(cluster.redis, pool)
        [letter] = await store.letters(await store.ids())
        assert letter.custom_id == "killer"
        assert [attempt.attempt for attempt in letter.attempts] == [1, 2, 3]


async def test_a_last_chance_is_taken_alone_while_others_run_elsewhere(redis_url: str, pool: str) -> None:
    async with cluster_of(redis_url, pool, max_attempts=2) as cluster:
        cluster.schedule()
        first = ManualEngine()
        victim = await cluster.join("a", first)
        batch = await cluster.submit(1)
        await eventually(lambda: first.running)
        await victim.kill()
        engines = [ManualEngine(), ManualEngine()]
        for name, engine in zip("ab", engines, strict=True):  # the first takes the name over: what ran comes back
            await cluster.join(name, engine)
        await eventually(lambda: any(engine.running for engine in engines))
        alone, other = sorted(engines, key=lambda engine: not engine.running)
        fresh = await cluster.submit(12)
        await cluster.finish(fresh, other)
        assert (len(alone.running), alone.most_running) == (1, 1)
        await cluster.finish(batch, alone)
        exactly_once(await cluster.collect(fresh), 12)
        [result] = await cluster.collect(batch)
        assert (result.ok, result.attempt) == (True, 2)
        await eventually(lambda: _both_serve(cluster, engines), "the device serves everybody again")


async def _both_serve(cluster: Cluster, engines: list[ManualEngine]) -> bool:
    await cluster.submit(10)
    served = all(engine.running for engine in engines)
    for engine in engines:
        engine.finish()
    return served
