"""The scheduler in a running cluster: order, late binding, joining, leaving, taking over, and what must not kill it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_fixtures import HEARTBEAT, Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine
from redis.exceptions import ResponseError

from broker import keys as keys_module
from broker.jobs import BATCH_CANCELLED, Priority
from broker.keys import LEVELS
from broker.store.worker import WorkerStore
from tokenyard.embedded_server import EmbeddedServer

SOUND = {name: str(value) for name, value in HEARTBEAT.items() if name != "incarnation"}


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


async def waiting(cluster: Cluster) -> int:
    return sum((await cluster.monitor.waiting()).values())


async def depth(cluster: Cluster, worker: str) -> int:
    return (await cluster.monitor.device_depths([worker]))[worker]


class TestOrder:
    async def test_high_before_normal_before_low(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=1)
        await cluster.register_model()
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
            await cluster.submit(3, prefix=priority.value, batch=cluster.batch, priority=priority)
        await cluster.join("w", engine)
        scheduler = cluster.schedule()
        await self.run_to_the_end(cluster, engine)
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
        await self.run_to_the_end(cluster, first)
        order = [r.custom_id for r in await cluster.collect(cluster.batch)]
        assert sorted(order) == sorted(f"{p}{i}" for p, n in (("low", 3), ("fresh", 3), ("high", 1)) for i in range(n))
        assert order.index("high0") < order.index("fresh0")
        assert max(order.index(f"low{i}") for i in range(3)) < order.index("fresh0")

    async def run_to_the_end(self, cluster: Cluster, engine: ManualEngine) -> None:
        async def all_ended() -> bool:
            engine.finish()
            return (await cluster.client.counts(cluster.batch)).complete

        await eventually(all_ended)


class TestLateBinding:
    async def test_a_slow_device_holds_its_seats_and_one_more_and_the_rest_waits(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("slow", engine)
        cluster.schedule()
        await cluster.submit(50)
        await eventually(lambda: engine.most_running == 5)
        assert await depth(cluster, "slow") == 5
        assert await waiting(cluster) == 45
        for _ in range(10):
            engine.finish(1)
            await eventually(lambda: len(engine.running) == 5)
            assert await depth(cluster, "slow") <= 5
        assert engine.most_running == 5

    async def test_what_waits_is_free_to_go_to_whoever_comes(self, cluster: Cluster) -> None:
        stuck, helper = ManualEngine(seats=1), instant_engine(cluster.model)
        await cluster.join("stuck", stuck)
        cluster.schedule()
        batch = await cluster.submit(30)
        await eventually(lambda: stuck.most_running == 2)
        await cluster.join("helper", helper)
        await eventually(lambda: counts_done(cluster, batch, 28))
        stuck.finish()
        results = await cluster.collect(batch)
        exactly_once(results, 30)
        assert sum(r.worker == "helper" for r in results) == 28


async def counts_done(cluster: Cluster, batch: str, least: int) -> bool:
    return (await cluster.client.counts(batch)).done >= least


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

        async def all_ended() -> bool:
            first.finish()
            return (await cluster.client.counts(batch)).complete

        await eventually(all_ended)
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
            await eventually(lambda: counts_done(cluster, batch, 5))
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

        async def all_ended() -> bool:
            engine.finish()
            return (await cluster.client.counts(batch)).complete

        await eventually(all_ended)
        results = await cluster.collect(batch)
        exactly_once(results, 20)
        assert sorted(r.attempt for r in results) == [1] * 15 + [2] * 5


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
            assert await depth(cluster, "w") == 5
            assert engine.most_running == 5

            async def all_ended() -> bool:
                engine.finish()
                return (await cluster.client.counts(batch)).complete

            await eventually(all_ended)
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
            await eventually(lambda: all_read(cluster, 30))
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
        assert await depth(cluster, "w") == 5

        async def all_ended() -> bool:
            engine.finish()
            return (await cluster.client.counts(batch)).complete

        await eventually(all_ended)
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


async def all_read(cluster: Cluster, count: int) -> bool:
    """Whether so many jobs were read and not dispatched."""
    try:
        pending = [await cluster.redis.xpending(cluster.keys.requests(level), "scheduler") for level in LEVELS]
    except ResponseError:  # its first term has just begun: no group yet
        return False
    return sum(p["pending"] for p in pending) == count


class TestCancel:
    async def test_waiting_jobs_end_without_any_worker(self, cluster: Cluster) -> None:
        await cluster.register_model()
        cluster.schedule()
        batch = await cluster.submit(30)
        other = await cluster.submit(5)
        await eventually(lambda: all_read(cluster, 35))
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
            await eventually(lambda: all_read(cluster, 10))
            await cluster.client.cancel(batch)
            assert len(await cluster.collect(batch)) == 60

    async def test_also_those_cancelled_while_nobody_led(self, cluster: Cluster) -> None:
        await cluster.register_model()
        before = cluster.schedule("before")
        batch = await cluster.submit(20)
        await eventually(lambda: all_read(cluster, 20))
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
        await eventually(lambda: counts_done(cluster, batch, 1))
        await cluster.client.cancel(batch)
        await eventually(lambda: len(engine.aborted) == 5, timeout=2.0)
        results = await cluster.collect(batch)
        assert sorted(r.error_code for r in results) == [""] + [BATCH_CANCELLED] * 19
        counts = await cluster.client.counts(batch)
        assert (counts.done, counts.cancelled, counts.complete) == (1, 19, True)
        await eventually(lambda: len(engine.running) == 3)
        engine.finish()
        exactly_once(await cluster.collect(other), 3)

    async def test_an_event_that_lies_cancels_nothing(self, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
        await cluster.register_model()
        cluster.schedule()
        batch = await cluster.submit(10)
        await eventually(lambda: all_read(cluster, 10))
        await cluster.redis.xadd(cluster.keys.events, {"kind": "cancelled", "batch": batch})
        await eventually(lambda: f"batch {batch} is not cancelled" in caplog.text)
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 10)


class TestRubbish:
    async def test_nothing_written_by_hand_kills_it_or_holds_jobs_up(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        redis, keys = cluster.redis, cluster.keys
        worker = await cluster.join("w", instant_engine(cluster.model))
        scheduler = cluster.schedule()
        exactly_once(await cluster.collect(await cluster.submit(5)), 5)

        event = await redis.xadd(keys.events, {b"\xff": b"\xff"})
        await redis.xadd(keys.events, {"kind": "completed", "worker": "w", "jobs": "a:b:c"})
        await redis.xadd(keys.events, {"kind": "completed", "worker": "w", "jobs": f"x:{'9' * 400}:1"})
        request = await redis.xadd(keys.requests("high"), {"what": "is this"})
        await redis.xadd(keys.requests("returned"), {"job": "x", "batch": "y"})
        await cluster.write(keys.worker("forged"), state="ready", seats="lots", seen="now")
        await redis.zadd(keys.workers, {"forged": 1, "ghost\n": 3})
        await redis.execute_command("ZADD", keys.workers, 2, b"\xff")
        await redis.xadd(keys.device("ghost\n"), {"what": "is this"})
        queued = await redis.xadd(keys.device("w"), {"what": "is this"})
        await redis.xadd(keys.control("w"), {b"\xff": b"\xff", "order": "dance"})

        for _ in range(3):
            exactly_once(await cluster.collect(await cluster.submit(5)), 5)
        await eventually(lambda: only_worker_left(cluster), "what is no worker is out of the pool")
        await eventually(lambda: depth_is_zero(cluster))
        assert await waiting(cluster) == 0
        assert not scheduler.task.done()
        assert not worker.task.done()
        for named in (event, request, queued):
            assert named.decode() in caplog.text
        for named in ("'forged'", "'ghost\\n'", "'dance'"):
            assert named in caplog.text

    async def test_a_heartbeat_that_cannot_be_read_is_named_once_and_goes_when_it_is_old(
        self, redis_url: str, pool: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with cluster_of(redis_url, pool, dead_after_s=2.5) as cluster:
            await cluster.register_model()
            now = await cluster.monitor.clock()
            await cluster.write(cluster.keys.worker("odd"), state="ready", seats="lots", seen=str(now))
            await cluster.redis.zadd(cluster.keys.workers, {"odd": now})
            cluster.schedule()
            await eventually(lambda: "worker 'odd' is dead" in caplog.text)
            assert caplog.text.count("the heartbeat of worker 'odd' cannot be read") == 1
            assert await cluster.redis.exists(cluster.keys.worker("odd"), cluster.keys.workers) == 0


async def puppet(cluster: Cluster, **fields: str) -> WorkerStore:
    """A ready worker that beats when the test says, and takes nothing."""
    worker = WorkerStore(cluster.redis, cluster.settings.pool, "w", result_ttl_s=60, dead_after_s=60, max_attempts=3)
    await worker.register("i", SOUND | fields, takeover=True)
    return worker


class TestSilence:
    async def test_a_new_term_first_gives_everybody_the_time_to_speak(self, redis_url: str, pool: str) -> None:
        """Redis was away: nobody could beat, and the scheduler is back before the workers are."""
        async with cluster_of(redis_url, pool, dead_after_s=60) as cluster:
            await cluster.register_model()
            worker = await puppet(cluster)
            await cluster.write(cluster.keys.worker("w"), seen=1)
            await cluster.submit(3)
            cluster.schedule()
            await eventually(lambda: all_read(cluster, 3))
            assert await depth(cluster, "w") == 0  # silent as yet: it gets nothing
            await worker.heartbeat(SOUND)
            await eventually(lambda: depth(cluster, "w"))

    async def test_who_stays_silent_is_declared_dead(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool, dead_after_s=1.5) as cluster:
            await cluster.register_model()
            await puppet(cluster)
            await cluster.submit(3)
            cluster.schedule()
            await eventually(lambda: depth(cluster, "w"))
            await cluster.in_state("w", None)
            assert (await cluster.monitor.waiting())["returned"] == 3


class TestCounting:
    async def test_jobs_that_left_a_device_unheard_of_block_it_only_for_a_while(self, cluster: Cluster) -> None:
        await cluster.register_model()
        await puppet(cluster, seats="1")
        queue = cluster.keys.device("w")
        for i in range(2):
            await cluster.redis.xadd(queue, {"job": f"phantom.{i}", "prompt_tokens": 1, "output_tokens": 1})
        cluster.schedule(dead_after_s=60)
        await cluster.submit(5)
        await eventually(lambda: all_read(cluster, 5))
        assert await depth(cluster, "w") == 2
        await cluster.redis.xtrim(queue, maxlen=0)

        async def two_dispatched() -> bool:
            return await depth(cluster, "w") == 2

        await eventually(two_dispatched)
        assert await waiting(cluster) == 3

    async def test_cancelled_batches_are_known_also_when_there_are_more_than_it_remembers(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("broker.scheduler._BATCHES_KEPT", 1)
        await cluster.register_model()
        cluster.schedule()
        await cluster.leading("first")
        batches = [await cluster.submit(5) for _ in range(4)]
        await eventually(lambda: all_read(cluster, 20))
        for batch in batches[:3]:
            await cluster.client.cancel(batch)
        for batch in batches[:3]:
            assert len(await cluster.collect(batch)) == 5
        assert await waiting(cluster) == 5


async def only_worker_left(cluster: Cluster) -> bool:
    return await cluster.redis.zrange(cluster.keys.workers, 0, -1) == [b"w"]


async def depth_is_zero(cluster: Cluster) -> bool:
    return await depth(cluster, "w") == 0


class TestLeaks:
    async def test_only_what_is_documented_to_live_for_ever_is_left(self, cluster: Cluster) -> None:
        workers = [await cluster.join(f"w{i}", instant_engine(cluster.model)) for i in range(2)]
        scheduler = cluster.schedule()
        done = await cluster.submit(50)
        await cluster.collect(done)
        for worker in workers:
            await worker.stop()
        cancelled = await cluster.submit(10)
        await cluster.client.cancel(cancelled)
        await cluster.collect(cancelled)
        await scheduler.stop()
        keys = cluster.keys
        found = [key.decode() async for key in cluster.redis.scan_iter(match=f"{keys.prefix}*", count=1000)]
        with_ttl = {key for key in found if await cluster.redis.ttl(key) > 0}
        for_ever = documented_to_live_for_ever(keys.prefix)
        assert [key for key in found if key not in with_ttl and not for_ever.fullmatch(key)] == []
        kept = {name(batch) for batch in (done, cancelled) for name in (keys.batch, keys.results, keys.ended)}
        assert with_ttl == kept
        assert await waiting(cluster) == 0

    async def test_the_events_are_bounded(self, cluster: Cluster) -> None:
        await cluster.register_model()
        worker = await cluster.join("w", instant_engine(cluster.model))
        pipe = cluster.redis.pipeline(transaction=False)
        for _ in range(12_000):
            pipe.xadd(cluster.keys.events, {"kind": "other"})
        await pipe.execute()
        await worker.stop()
        assert await cluster.redis.xlen(cluster.keys.events) < 11_000


def documented_to_live_for_ever(prefix: str) -> re.Pattern[str]:
    """The keys of which the table in ``broker.keys`` says so."""
    rows = re.findall(r"^``ty:\{pool\}:(\S+)``\s+for ever", keys_module.__doc__ or "", re.MULTILINE)
    assert len(rows) >= 4
    return re.compile("|".join(re.escape(prefix) + re.sub("LEVEL", r"\\w+", row) for row in rows))


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
