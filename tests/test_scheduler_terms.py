"""Schedulers that take over from one another, lose answers, and find the pool as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cluster_fixtures import READY, Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

import broker.scheduler as scheduler_module
from broker.jobs import Priority
from broker.silence import Silences


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


class TestTakeover:
    async def test_a_standby_takes_over_at_once_when_the_leader_stops(self, redis_url: str, pool: str) -> None:
        # The lease would last a minute: only its release can bring the standby on.
        async with cluster_of(redis_url, pool) as cluster:
            leader = cluster.schedule("first", lease_ttl_s=60)
            await cluster.leading("first")
            cluster.schedule("second", lease_ttl_s=0.6)
            await cluster.join("w", instant_engine(cluster.model))
            exactly_once(await cluster.collect(await cluster.submit(10)), 10)
            await leader.stop()
            await cluster.leading("second")
            exactly_once(await cluster.collect(await cluster.submit(10)), 10)

    async def test_a_standby_takes_over_from_a_leader_that_was_killed(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, lease_ttl_s=1.0) as cluster:
            engine = ManualEngine(seats=4)
            await cluster.join("w", engine)
            leader = cluster.schedule("first")
            batch = await cluster.submit(40)
            await eventually(lambda: len(engine.running) == 5)
            cluster.schedule("second")
            await leader.kill()
            await cluster.leading("second")
            # What runs was counted again: nothing goes to the full device.
            await cluster.submit(1, prefix="late", batch=batch)
            assert await cluster.depth("w") == 5
            assert engine.most_running == 5
            await cluster.finish(batch, engine)
            results = await cluster.collect(batch)
            exactly_once([r for r in results if r.custom_id != "late0"], 40)
            assert len(results) == 41
            assert {r.attempt for r in results} == {1}
            assert engine.most_running == 5
            assert len(set(engine.started)) == len(engine.started) == 41

    async def test_jobs_that_the_predecessor_had_read_are_not_lost(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, lease_ttl_s=1.0) as cluster:
            await cluster.register_model()
            leader = cluster.schedule("first")
            await cluster.leading("first")
            batch = cluster.batch
            for level in Priority:
                await cluster.submit(10, prefix=level.value, batch=batch, priority=level)
            await eventually(lambda: cluster.all_read(30))
            await leader.kill()
            cluster.schedule("second")
            await cluster.join("w", instant_engine(cluster.model))
            results = await cluster.collect(batch)
            assert sorted(r.custom_id for r in results) == sorted(f"{p.value}{i}" for p in Priority for i in range(10))

    async def test_a_leader_that_stalls_takes_no_jobs_with_it(self, redis_url: str, pool: str) -> None:
        """Its blocking reads are still open on the server when the next one leads: as under SIGSTOP."""
        async with cluster_of(redis_url, pool, lease_ttl_s=1.0) as cluster:
            await cluster.join("w", instant_engine(cluster.model))
            leader = cluster.schedule("first")
            await cluster.leading("first")
            exactly_once(await cluster.collect(await cluster.submit(3)), 3)
            leader.redis.freeze()
            cluster.schedule("second")
            await cluster.leading("second")
            for _ in range(5):
                exactly_once(await cluster.collect(await cluster.submit(3)), 3)
            leader.redis.thaw()
            for _ in range(5):
                exactly_once(await cluster.collect(await cluster.submit(3)), 3)
            assert await cluster.monitor.lease_owner() == "second"
            assert not leader.task.done()

    async def test_a_standby_hears_the_workers_before_it_leads(
        self, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker that fell silent before the leader died is not given all its time again."""
        heard: list[float] = []

        class Hearing(Silences):
            def of(self, name: str, seen: float) -> float:
                heard.append(super().of(name, seen))
                return heard[-1]

        monkeypatch.setattr(scheduler_module, "Silences", Hearing)
        async with cluster_of(redis_url, pool, dead_after_s=600) as cluster:
            await cluster.puppet("silent")
            await cluster.write(cluster.keys.lease, owner="another", epoch=999)
            await cluster.redis.pexpire(cluster.keys.lease, 600_000)
            cluster.schedule("second", lease_ttl_s=0.6)
            silent = await eventually(lambda: next((s for s in heard if s > 0), 0), "it counts while it stands by")
            while_standing_by = len(heard)
            await cluster.redis.delete(cluster.keys.lease)
            await cluster.leading("second")
            await eventually(lambda: len(heard) > while_standing_by and heard[-1] > silent, "it goes on counting")
            assert heard == sorted(heard)

    async def test_a_leader_that_lost_its_lease_stands_by_and_comes_back(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, lease_ttl_s=0.6) as cluster:
            await cluster.join("w", instant_engine(cluster.model))
            leader = cluster.schedule("first")
            await cluster.leading("first")
            await cluster.write(cluster.keys.lease, owner="intruder", epoch=999)
            batch = await cluster.submit(10)
            exactly_once(await cluster.collect(batch), 10)
            assert await cluster.monitor.lease_owner() == "first"
            assert not leader.task.done()


class TestLostAnswers:
    async def test_a_lost_answer_to_dispatching_loses_no_job_and_doubles_none(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        scheduler = cluster.schedule()
        await cluster.leading("first")
        scheduler.redis.lose = lambda args, answer: answer == [[], []]
        batch = await cluster.submit(20)
        await eventually(lambda: len(engine.running) == 5)
        assert scheduler.redis.lose is None
        assert await cluster.depth("w") == 5
        await cluster.finish(batch, engine)
        results = await cluster.collect(batch)
        exactly_once(results, 20)
        assert {r.attempt for r in results} == {1}
        assert engine.most_running == 5

    async def test_a_lost_answer_to_reading_loses_no_job(self, cluster: Cluster) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        scheduler = cluster.schedule()
        await cluster.leading("first")
        scheduler.redis.lose = lambda args, answer: args[-1] == ">" and answer != []
        exactly_once(await cluster.collect(await cluster.submit(20)), 20)
        assert scheduler.redis.lose is None


class TestSilence:
    async def test_a_new_term_first_gives_everybody_the_time_to_speak(self, redis_url: str, pool: str) -> None:
        """Redis was away: nobody could beat, and the scheduler is back before the workers are."""
        async with cluster_of(redis_url, pool, dead_after_s=60) as cluster:
            await cluster.register_model()
            worker = await cluster.puppet()
            await cluster.write(cluster.keys.worker("w"), seen=1)
            await cluster.submit(3)
            cluster.schedule()
            await eventually(lambda: cluster.all_read(3))
            assert await cluster.depth("w") == 0  # silent as yet: it gets nothing
            await worker.heartbeat(READY)
            await eventually(lambda: cluster.depth("w"))

    async def test_who_stays_silent_is_declared_dead(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, dead_after_s=1.5) as cluster:
            await cluster.register_model()
            await cluster.puppet()
            await cluster.submit(3)
            cluster.schedule()
            await eventually(lambda: cluster.depth("w"))
            await cluster.in_state("w", None)
            assert (await cluster.monitor.waiting())["returned"] == 3


class TestCounting:
    async def test_jobs_that_left_a_device_unheard_of_block_it_only_for_a_while(self, cluster: Cluster) -> None:
        await cluster.register_model()
        await cluster.puppet(seats="1")
        queue = cluster.keys.device("w")
        for i in range(2):
            await cluster.redis.xadd(queue, {"job": f"phantom.{i}", "prompt_tokens": 1, "output_tokens": 1})
        cluster.schedule(dead_after_s=60)
        await cluster.submit(5)
        await eventually(lambda: cluster.all_read(5))
        assert await cluster.depth("w") == 2
        await cluster.redis.xtrim(queue, maxlen=0)

        async def two_dispatched() -> bool:
            return await cluster.depth("w") == 2

        await eventually(two_dispatched)
        assert await cluster.waiting() == 3

    async def test_cancelled_batches_are_known_also_when_there_are_more_than_it_remembers(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("broker.request_reader._BATCHES_KEPT", 1)
        await cluster.register_model()
        cluster.schedule()
        await cluster.leading("first")
        batches = [await cluster.submit(5) for _ in range(4)]
        await eventually(lambda: cluster.all_read(20))
        for batch in batches[:3]:
            await cluster.client.cancel(batch)
        for batch in batches[:3]:
            assert len(await cluster.collect(batch)) == 5
        assert await cluster.waiting() == 5
