"""Cancelling in a running cluster: what waits ends, what runs is aborted, and the batch completes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

from broker.jobs import BATCH_CANCELLED, Priority


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


class TestCancel:
    async def test_waiting_jobs_end_without_any_worker(self, cluster: Cluster) -> None:
        await cluster.register_model()
        cluster.schedule()
        batch = await cluster.submit(30)
        other = await cluster.submit(5)
        await eventually(lambda: cluster.all_read(35))
        await cluster.client.cancel(batch)
        results = await cluster.collect(batch)
        assert len(results) == 30
        assert {r.error_code for r in results} == {BATCH_CANCELLED}
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(other), 5)

    async def test_also_those_beyond_what_the_scheduler_looks_at(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, window_jobs=10) as cluster:
            await cluster.register_model()
            cluster.schedule()
            batch = await cluster.submit(60)
            await eventually(lambda: cluster.all_read(10))
            await cluster.client.cancel(batch)
            assert len(await cluster.collect(batch)) == 60

    async def test_also_those_cancelled_while_nobody_led(self, cluster: Cluster) -> None:
        await cluster.register_model()
        before = cluster.schedule("before")
        batch = await cluster.submit(20)
        await eventually(lambda: cluster.all_read(20))
        await before.stop()
        await cluster.client.cancel(batch)
        cluster.schedule("after")
        results = await cluster.collect(batch)
        assert len(results) == 20
        assert {r.error_code for r in results} == {BATCH_CANCELLED}

    async def test_running_ones_are_aborted_and_the_batch_completes(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(20)
        other = await cluster.submit(3, priority=Priority.LOW)
        await eventually(lambda: len(engine.running) == 5)
        engine.finish(1)
        await eventually(lambda: cluster.done(batch, 1))
        await cluster.client.cancel(batch)
        await eventually(lambda: len(engine.aborted) == 5)
        results = await cluster.collect(batch)
        assert sorted(r.error_code for r in results) == [""] + [BATCH_CANCELLED] * 19
        counts = await cluster.client.counts(batch)
        assert (counts.done, counts.cancelled, counts.complete) == (1, 19, True)
        await eventually(lambda: len(engine.running) == 3)
        engine.finish()
        exactly_once(await cluster.collect(other), 3)

    async def test_what_has_not_started_ends_though_its_device_takes_nothing(self, cluster: Cluster) -> None:
        await cluster.puppet("w", seats="4")
        cluster.schedule()
        batch = await cluster.submit(30)
        await eventually(lambda: cluster.depth("w"), "some are in its device queue")
        await cluster.client.cancel(batch)
        results = await cluster.collect(batch)
        assert len(results) == 30
        assert {r.error_code for r in results} == {BATCH_CANCELLED}
        assert await cluster.depth("w") == 0

    async def test_an_event_that_lies_cancels_nothing(self, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
        await cluster.register_model()
        cluster.schedule()
        batch = await cluster.submit(10)
        await eventually(lambda: cluster.all_read(10))
        await cluster.redis.xadd(cluster.keys.events, {"kind": "cancelled", "batch": batch})
        await eventually(lambda: f"batch {batch} is not cancelled" in caplog.text)
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 10)
