"""The scheduler in a running cluster: order, late binding, workers that come and go, many pools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

from broker.jobs import Priority
from tokenyard.embedded_server import EmbeddedServer


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


class TestOrder:
    async def test_high_before_normal_before_low(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=1)
        await cluster.register_model()
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
            await cluster.submit(3, prefix=priority.value, batch=cluster.batch, priority=priority)
        await cluster.join("w", engine)
        scheduler = cluster.schedule()
        await cluster.finish(cluster.batch, engine)
        order = [r.custom_id for r in await cluster.collect(cluster.batch)]
        assert order == [f"{level}{i}" for level in ("high", "normal", "low") for i in range(3)]
        assert not scheduler.task.done()

    async def test_what_came_back_goes_before_what_is_fresh_of_the_same_level(self, cluster: Cluster) -> None:
        await cluster.join("first", first := ManualEngine(seats=1))
        cluster.schedule()
        await cluster.submit(3, prefix="low", batch=cluster.batch, priority=Priority.LOW)
        await eventually(lambda: first.running)
        await cluster.submit(3, prefix="fresh", batch=cluster.batch, priority=Priority.LOW)
        await cluster.submit(1, prefix="high", batch=cluster.batch, priority=Priority.HIGH)
        leaver = cluster.start("second", second := ManualEngine(seats=1))
        await eventually(lambda: second.running)
        await leaver.stop(at_once=True)
        await cluster.finish(cluster.batch, first)
        order = [r.custom_id for r in await cluster.collect(cluster.batch)]
        assert sorted(order) == sorted(f"{p}{i}" for p, n in (("low", 3), ("fresh", 3), ("high", 1)) for i in range(n))
        assert order.index("high0") < order.index("fresh0")
        assert max(order.index(f"low{i}") for i in range(3)) < order.index("fresh0")


class TestLateBinding:
    async def test_a_slow_device_holds_its_seats_and_one_more_and_the_rest_waits(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("slow", engine)
        cluster.schedule()
        await cluster.submit(50)
        await eventually(lambda: engine.most_running == 5)
        assert await cluster.depth("slow") == 5
        assert await cluster.waiting() == 45
        for _ in range(10):
            engine.finish(1)
            await eventually(lambda: len(engine.running) == 5)
            assert await cluster.depth("slow") <= 5
        assert engine.most_running == 5

    async def test_what_waits_is_free_to_go_to_whoever_comes(self, cluster: Cluster) -> None:
        stuck, helper = ManualEngine(seats=1), instant_engine(cluster.model)
        await cluster.join("stuck", stuck)
        cluster.schedule()
        batch = await cluster.submit(30)
        await eventually(lambda: stuck.most_running == 2)
        await cluster.join("helper", helper)
        await eventually(lambda: cluster.done(batch, 28))
        stuck.finish()
        results = await cluster.collect(batch)
        exactly_once(results, 30)
        assert sum(r.worker == "helper" for r in results) == 28


class TestWorkersComeAndGo:
    async def test_with_no_worker_jobs_wait_and_the_first_that_joins_gets_them(self, cluster: Cluster) -> None:
        cluster.schedule()
        await cluster.leading("first")
        await cluster.register_model()
        batch = await cluster.submit(20)
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 20)

    async def test_one_that_joins_under_load_gets_work_and_one_that_drains_gets_no_more(self, cluster: Cluster) -> None:
        first, second = ManualEngine(seats=4), ManualEngine(seats=4)
        await cluster.join("first", first)
        cluster.schedule()
        batch = await cluster.submit(40)
        await eventually(lambda: len(first.running) == 5)
        joined = await cluster.join("second", second)
        await eventually(lambda: len(second.running) == 5)
        joined.worker.stop("test")
        await cluster.in_state("second", "draining")
        ran = set(second.started)
        for _ in range(5):
            second.finish(1)
        await joined.left()
        assert set(second.started) == ran
        assert len(ran) == 5
        await cluster.in_state("second", None)
        await cluster.finish(batch, first)
        results = await cluster.collect(batch)
        exactly_once(results, 40)
        assert sum(r.worker == "second" for r in results) == 5
        assert {r.attempt for r in results} == {1}

    async def test_the_jobs_of_a_worker_that_was_killed_run_elsewhere(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, dead_after_s=1.5) as cluster:
            doomed = ManualEngine(seats=4)
            victim = await cluster.join("victim", doomed)
            cluster.schedule()
            batch = await cluster.submit(20)
            await eventually(lambda: len(doomed.running) == 5)
            await victim.kill()
            await cluster.join("other", instant_engine(cluster.model))
            results = await cluster.collect(batch)
            exactly_once(results, 20)
            assert sorted(r.attempt for r in results) == [1] * 15 + [2] * 5
            assert {r.worker for r in results} == {"other"}

    async def test_a_zombie_that_wakes_up_changes_nothing_and_joins_anew(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, dead_after_s=1.5) as cluster:
            engine = ManualEngine(seats=4)
            zombie = await cluster.join("zombie", engine)
            cluster.schedule()
            batch = await cluster.submit(5)
            await eventually(lambda: len(engine.running) == 5)
            zombie.redis.freeze()
            await cluster.in_state("zombie", None)
            await cluster.join("other", instant_engine(cluster.model))
            await eventually(lambda: cluster.done(batch, 5))
            engine.finish(3, status_code=500)
            zombie.redis.thaw()
            await cluster.in_state("zombie", "ready")
            assert len(engine.aborted) == 2
            results = await cluster.collect(batch)
            exactly_once(results, 5)
            assert {(r.worker, r.attempt) for r in results} == {("other", 2)}

    async def test_a_worker_whose_hash_was_deleted_joins_anew_and_each_job_ends_once(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(20)
        await eventually(lambda: len(engine.running) == 5)
        await cluster.redis.delete(cluster.keys.worker("w"))
        await eventually(lambda: len(engine.aborted) == 5)
        await cluster.finish(batch, engine)
        results = await cluster.collect(batch)
        exactly_once(results, 20)
        assert sorted(r.attempt for r in results) == [1] * 15 + [2] * 5


class TestManyPools:
    async def test_one_host_serves_every_pool_it_is_told_of(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, f"{pool}-a") as first, cluster_of(redis_url, f"{pool}-b") as second:
            await first.join("w", instant_engine(first.model))
            await second.join("w", instant_engine(second.model))
            first.schedule(pools=[f"{pool}-a", f"{pool}-b"])
            batch = first.batch
            await first.client.submit(first.requests(5, "a") + second.requests(5, "b"), batch)
            await first.client.seal(batch)
            results = await first.collect(batch)
            assert sorted(r.custom_id for r in results) == sorted(f"{p}{i}" for p in "ab" for i in range(5))

    async def test_a_host_that_is_told_of_none_serves_each_that_comes(self, tmp_path: Path, pool: str) -> None:
        async with EmbeddedServer(tmp_path / "data") as server, cluster_of(server.url, f"{pool}-a") as first:
            await first.join("w", instant_engine(first.model))
            first.schedule(pools=[])
            exactly_once(await first.collect(await first.submit(5)), 5)
            async with cluster_of(server.url, f"{pool}-b") as second:
                await second.join("w", instant_engine(second.model))
                exactly_once(await second.collect(await second.submit(5)), 5)

    async def test_an_unknown_policy_ends_the_host_with_a_clear_error(self, cluster: Cluster) -> None:
        host = cluster.schedule(policy="fastest")
        with pytest.raises(Exception, match="no placement policy 'fastest'"):
            async with asyncio.timeout(10):
                await host.task
