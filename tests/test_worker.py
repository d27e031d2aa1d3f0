"""Workers in a running cluster: engines that die, servers that go away, draining, and names that are taken."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

from broker.errors import UsageError
from broker.policies.base import Placement
from broker.store.scheduler import SchedulerStore
from broker.throughput import Profile
from tokenyard.embedded_server import EmbeddedServer
from workers import worker as worker_module
from workers.engines.base import Capacity, EngineRequest, EngineResponse, EngineStartError
from workers.engines.simulated import SimulatedEngine, SimulatedOptions


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server of the test's own, to be killed."""
    async with EmbeddedServer(tmp_path / "data") as running:
        yield running


async def kill(server: EmbeddedServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await eventually(lambda: server.pid is None)


class TestServerGoesAway:
    async def test_killed_and_started_again_everything_goes_on_and_each_job_ends_once(
        self, server: EmbeddedServer, pool: str
    ) -> None:
        async with cluster_of(server.url, pool) as cluster:
            slow = Profile(0, 0, 0, 0.02, 0, 0, kv_tokens=65_536, seats=8)
            for name in ("w0", "w1"):
                await cluster.join(name, SimulatedEngine(SimulatedOptions(profile=slow, models=(cluster.model,))))
            scheduler = cluster.schedule()
            batch = await cluster.submit(400)
            for least in (50, 150):
                await eventually(lambda least=least: cluster.done(batch, least))
                await kill(server)
                await server.start()
            results = await cluster.collect(batch)
            exactly_once(results, 400)
            assert not scheduler.task.done()
            counts = await cluster.client.counts(batch)
            assert (counts.done, counts.total) == (400, 400)

    async def test_what_ends_while_it_is_away_is_told_later_and_not_run_again(
        self, server: EmbeddedServer, pool: str
    ) -> None:
        async with cluster_of(server.url, pool) as cluster:
            engine = ManualEngine(seats=4)
            await cluster.join("w", engine)
            cluster.schedule()
            batch = await cluster.submit(5)
            await eventually(lambda: len(engine.running) == 5)
            await kill(server)
            engine.finish()
            await eventually(lambda: not engine.running)
            await server.start()
            results = await cluster.collect(batch)
            exactly_once(results, 5)
            assert len(engine.started) == 5
            assert {r.attempt for r in results} == {1}

    async def test_a_second_stop_ends_a_worker_also_while_the_server_is_away(
        self, server: EmbeddedServer, pool: str
    ) -> None:
        async with cluster_of(server.url, pool) as cluster:
            engine = ManualEngine(seats=4)
            running = await cluster.join("w", engine)
            cluster.schedule()
            await cluster.submit(5)
            await eventually(lambda: len(engine.running) == 5)
            await kill(server)
            await running.stop(at_once=True)
            assert len(engine.aborted) == 5

    async def test_a_server_that_lost_its_data_is_joined_anew(self, server: EmbeddedServer, pool: str) -> None:
        async with cluster_of(server.url, pool) as cluster:
            await cluster.join("w", instant_engine(cluster.model))
            scheduler = cluster.schedule()
            exactly_once(await cluster.collect(await cluster.submit(5)), 5)
            await cluster.redis.flushall()
            await cluster.in_state("w", "ready")
            exactly_once(await cluster.collect(await cluster.submit(5)), 5)
            assert not scheduler.task.done()


async def dispatch_all(cluster: Cluster, worker: str) -> None:
    """Put all that waits into one device queue, however deep, as no scheduler does."""
    store = SchedulerStore(cluster.redis, cluster.settings.pool, "test", lease_ttl_s=60, result_ttl_s=60)
    await store.hold_lease()
    await store.prepare()
    jobs = await store.read_requests("normal", 1000)
    await store.dispatch({worker: [Placement(job, 1, 1, worker) for job in jobs]})


class TestDraining:
    async def test_what_runs_is_finished_and_the_rest_goes_back(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=2)
        running = await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(10)
        await eventually(lambda: len(engine.running) == 3)
        running.worker.stop("test")
        await cluster.in_state("w", "draining")
        assert len(engine.running) == 3
        engine.finish()
        await running.left()
        counts = await cluster.client.counts(batch)
        assert (counts.done, counts.ended) == (3, 3)
        assert await cluster.waiting() == 7
        assert engine.aborted == []
        assert await cluster.redis.exists(cluster.keys.device("w"), cluster.keys.worker("w")) == 0
        await cluster.join("next", instant_engine(cluster.model))
        results = await cluster.collect(batch)
        exactly_once(results, 10)
        assert {r.attempt for r in results} == {1}

    async def test_what_lies_in_its_queue_is_not_started_any_more(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=2)
        running = await cluster.join("w", engine)
        await cluster.submit(8)
        await dispatch_all(cluster, "w")
        await eventually(lambda: len(engine.running) == 3)
        running.worker.stop("test")
        engine.finish(2)  # leaves room before anything was handed back
        await cluster.in_state("w", "draining")
        engine.finish()
        await running.left()
        assert len(engine.started) == 3
        assert await cluster.waiting() == 5

    async def test_a_second_stop_hands_back_what_runs(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=2)
        running = await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(5)
        await eventually(lambda: len(engine.running) == 3)
        await running.stop(at_once=True)
        assert len(engine.aborted) == 3
        await cluster.join("next", instant_engine(cluster.model))
        results = await cluster.collect(batch)
        exactly_once(results, 5)
        assert sorted(r.attempt for r in results) == [1, 1, 2, 2, 2]

    async def test_one_that_still_starts_leaves_at_once(self, cluster: Cluster) -> None:
        class NeverReady(ManualEngine):
            async def start(self) -> Capacity:
                await asyncio.Event().wait()
                raise AssertionError

        running = cluster.start("w", NeverReady())
        await cluster.in_state("w", "starting")
        await running.stop()
        await cluster.in_state("w", None)

    async def test_nothing_is_left_running_behind_it(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=2)
        running = await cluster.join("w", engine)
        scheduler = cluster.schedule()
        await cluster.submit(5)
        await eventually(lambda: len(engine.running) == 3)
        await running.stop(at_once=True)
        await scheduler.stop()
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "no task is left")


class TestEngineFails:
    @pytest.fixture(autouse=True)
    def quick_restart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_module, "_RESTART_FIRST_S", 0.01)

    async def test_its_jobs_go_back_and_it_is_started_again(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(10)
        await eventually(lambda: len(engine.running) == 5)
        engine.finish(2)
        await eventually(lambda: len(engine.started) == 7)
        engine.die()
        await eventually(lambda: engine.starts == 2)
        await cluster.finish(batch, engine)
        results = await cluster.collect(batch)
        exactly_once(results, 10)
        assert sum(r.attempt == 2 for r in results) == 5

    async def test_it_keeps_trying_when_the_engine_does_not_start_again(self, cluster: Cluster) -> None:
        class Stubborn(ManualEngine):
            async def start(self) -> Capacity:
                capacity = await super().start()
                if 2 <= self.starts < 5:
                    raise EngineStartError("not yet")
                return capacity

        engine = Stubborn()
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(3)
        await eventually(lambda: len(engine.running) == 3)
        engine.die()
        await eventually(lambda: engine.starts == 5)
        await cluster.finish(batch, engine)
        exactly_once(await cluster.collect(batch), 3)

    async def test_one_that_never_starts_ends_the_worker_and_it_leaves(self, cluster: Cluster) -> None:
        class Broken(ManualEngine):
            async def start(self) -> Capacity:
                raise EngineStartError("no such model: look for it")

        running = cluster.start("w", Broken())
        with pytest.raises(EngineStartError, match="look for it"):
            await running.left()
        await cluster.in_state("w", None)

    async def test_an_error_in_one_request_fails_that_job_alone(self, cluster: Cluster) -> None:
        class Picky(ManualEngine):
            async def run(self, request: EngineRequest) -> EngineResponse:
                job, *_ = request.job_id.rsplit("-", 2)
                bad.setdefault(job, len(bad) == 1)
                if bad[job]:
                    raise ValueError("a secret from the prompt")
                return await super().run(request)

        bad: dict[str, bool] = {}
        engine = Picky(seats=1)
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(6)
        await cluster.finish(batch, engine)
        results = await cluster.collect(batch)
        assert sorted(r.status_code for r in results) == [200] * 5 + [500]
        [failed] = [r for r in results if not r.ok]
        assert b"ValueError in the engine" in failed.body
        assert b"secret" not in failed.body

    async def test_jobs_that_the_engine_refuses_count_as_failed(self, cluster: Cluster) -> None:
        engine = ManualEngine()
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(2)
        await eventually(lambda: len(engine.running) == 2)
        engine.finish(1, status_code=400)
        engine.finish()
        results = await cluster.collect(batch)
        assert sorted(r.status_code for r in results) == [200, 400]
        counts = await cluster.client.counts(batch)
        assert (counts.done, counts.failed) == (1, 1)


class TestNames:
    async def test_a_new_process_takes_its_predecessors_name_and_the_old_one_ends(self, cluster: Cluster) -> None:
        old_engine = ManualEngine(seats=2)
        old = await cluster.join("w", old_engine)
        cluster.schedule()
        batch = await cluster.submit(6)
        await eventually(lambda: len(old_engine.running) == 3)
        await cluster.join("w", instant_engine(cluster.model))
        with pytest.raises(UsageError, match=r"another worker of this pool is named 'w'"):
            await old.left()
        assert len(old_engine.aborted) == 3
        exactly_once(await cluster.collect(batch), 6)
        await cluster.in_state("w", "ready")

    async def test_a_model_of_another_pool_is_refused(self, redis_url: str, cluster: Cluster, pool: str) -> None:
        await cluster.register_model()
        async with cluster_of(redis_url, f"{pool}-other") as other:
            other.model = cluster.model
            running = other.start("w", ManualEngine())
            with pytest.raises(UsageError, match=f"served by pool '{pool}'"):
                await running.left()


class TestHeartbeats:
    async def test_what_redis_cli_shows(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4, kv_tokens=5000)
        await cluster.join("w", engine)
        cluster.schedule()
        await cluster.submit(3)
        await eventually(lambda: len(engine.running) == 3)

        async def three_running() -> dict[bytes, bytes] | None:
            fields = await cluster.redis.hgetall(cluster.keys.worker("w"))  # type: ignore[misc]  # the async one
            return fields if fields[b"running"] == b"3" else None

        fields = await eventually(three_running)
        expected = {"state": "ready", "engine": "test", "model": cluster.model, "device": "test device", "seats": "4"}
        expected |= {"kv_tokens_total": "5000", "kv_tokens_free": "4955", "version": "manual 1", "waiting": "0"}
        assert {name: fields[name.encode()].decode() for name in expected} == expected
        assert {b"incarnation", b"free_memory_bytes", b"output_tokens_per_s", b"prompt_tokens_per_s"} <= set(fields)

    async def test_the_state_is_told_at_once(self, redis_url: str, pool: str) -> None:
        """With one heartbeat a second, ready must not wait for the next."""
        async with cluster_of(redis_url, pool, heartbeat_interval_s=1.0) as cluster:
            before = await cluster.monitor.last_event()
            await cluster.join("w", ManualEngine())
            events = await cluster.monitor.events(before)
            assert [fields["kind"] for _, fields in events] == ["worker", "worker"]


class TestLostAnswers:
    async def test_a_lost_answer_to_taking_loses_no_job(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=300)
        running = await cluster.join("w", engine)
        cluster.schedule()
        first = await cluster.submit(280)
        await eventually(lambda: len(engine.running) == 280)
        running.redis.lose = lambda args, answer: args[-1] == ">" and answer[1]
        second = await cluster.submit(20, prefix="s")
        await eventually(lambda: len(engine.running) == 300)
        assert running.redis.lose is None
        engine.finish()
        exactly_once(await cluster.collect(first), 280)
        exactly_once(await cluster.collect(second), 20, "s")
        assert len(set(engine.started)) == len(engine.started) == 300

    async def test_a_lost_answer_to_completing_makes_no_second_result(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=9)
        running = await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(10)
        await eventually(lambda: len(engine.running) == 10)
        running.redis.lose = lambda args, answer: answer == [1] * 10
        engine.finish()
        exactly_once(await cluster.collect(batch), 10)
        assert running.redis.lose is None
        assert (await cluster.client.counts(batch)).done == 10
        await running.stop()

    async def test_what_is_sent_while_the_worker_asks_what_it_had_is_not_run_again(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        running = await cluster.join("w", engine)
        cluster.schedule()
        first = await cluster.submit(4)
        await eventually(lambda: len(engine.running) == 4)
        asked, release = asyncio.Event(), asyncio.Event()

        def hold(args: tuple[Any, ...], answer: Any) -> asyncio.Event | None:
            if args[-1] != "0" or not answer[1]:
                return None
            asked.set()
            return release

        running.redis.hold = hold
        running.redis.lose = lambda args, answer: args[0] == "XREAD" and cluster.keys.device("w") in args
        second = await cluster.submit(1, prefix="s")
        await eventually(asked.is_set)
        engine.finish(4)
        await eventually(lambda: not engine.running)
        for _ in range(10):  # time to send what ended, where it does not wait for the held answer
            await asyncio.sleep(0.01)
        release.set()
        await eventually(lambda: engine.running)
        engine.finish()
        exactly_once(await cluster.collect(first), 4)
        exactly_once(await cluster.collect(second), 1, "s")
        assert len(set(engine.started)) == len(engine.started) == 5
