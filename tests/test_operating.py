"""Pausing, resuming and draining devices; another priority for what waits."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cli_process import in_process
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

from broker.client import new_batch_id
from broker.jobs import Priority
from broker.store.operator import OperatorStore, WorkerOrder


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


@pytest.fixture
def operator(cluster: Cluster) -> OperatorStore:
    return OperatorStore(cluster.redis, cluster.settings.pool)


class TestDevices:
    async def test_a_paused_device_ends_what_runs_and_takes_no_more(
        self, cluster: Cluster, operator: OperatorStore
    ) -> None:
        engine = ManualEngine(seats=2)
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(20)
        await eventually(lambda: len(engine.running) >= 2)
        shown = await in_process(cluster.url, "device", "pause", "w", "--pool", cluster.settings.pool)
        assert shown.code == 0, shown.err
        assert shown.out.startswith("device w: paused, ")
        started = len(engine.started)
        engine.finish()

        async def all_wait() -> bool:
            return not engine.running and await cluster.depth("w") == 0

        await eventually(all_wait)
        counts = await cluster.client.counts(batch)
        assert (counts.done, len(engine.started)) == (started, started)
        assert await cluster.waiting() == 20 - started
        await operator.order("w", WorkerOrder.RESUME)
        await cluster.in_state("w", "ready")
        await cluster.finish(batch, engine)
        exactly_once(await cluster.collect(batch), 20)
        assert len(engine.started) == len(set(engine.started)) == 20

    async def test_pausing_outlives_an_engine_that_dies(self, cluster: Cluster, operator: OperatorStore) -> None:
        engine = ManualEngine(seats=2)
        await cluster.join("w", engine)
        cluster.schedule()
        await cluster.submit(1)
        await eventually(lambda: len(engine.running) == 1)
        await operator.order("w", WorkerOrder.PAUSE)
        await cluster.in_state("w", "paused")
        engine.die()
        await eventually(lambda: engine.starts == 2)
        await cluster.in_state("w", "paused")
        assert engine.running == {}

    async def test_a_device_that_drains_leaves(self, cluster: Cluster) -> None:
        running = await cluster.join("w", ManualEngine())
        shown = await in_process(cluster.url, "device", "drain", "w", "--pool", cluster.settings.pool)
        assert shown.code == 0, shown.err
        await running.left()
        shown = await in_process(cluster.url, "device", "resume", "w", "--pool", cluster.settings.pool)
        assert shown.code == 2
        assert f"pool {cluster.settings.pool} has no device w; it has: none" in shown.err


class TestPriority:
    async def submit(self, cluster: Cluster, batch: str, prefix: str, priority: Priority = Priority.NORMAL) -> None:
        await cluster.client.submit(cluster.requests(3, prefix), batch, priority=priority)
        await cluster.client.seal(batch)

    @pytest.mark.parametrize("tenant", ["default", "acme"])
    async def test_what_waits_is_moved_and_nothing_else(
        self, cluster: Cluster, operator: OperatorStore, tenant: str
    ) -> None:
        await cluster.register_model()
        mine, other = new_batch_id(tenant), new_batch_id(tenant)
        await self.submit(cluster, mine, "r")
        await self.submit(cluster, other, "o")
        shown = await in_process(cluster.url, "prioritize", mine, "high")
        assert (shown.code, shown.err) == (0, "")
        assert shown.out == f"batch {mine}: 3 waiting jobs moved to high priority\n"
        assert await cluster.monitor.waiting() == {"returned": 0, "high": 3, "normal": 3, "low": 0}
        assert await operator.reprioritize(mine, Priority.HIGH) == 0
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        exactly_once(await cluster.collect(mine), 3)
        exactly_once(await cluster.collect(other), 3, "o")

    async def test_jobs_that_the_scheduler_has_read_run_once_and_first(
        self, cluster: Cluster, operator: OperatorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("broker.store.operator._LOOK_AT", 2)
        await cluster.register_model()
        cluster.schedule()
        first, urgent = new_batch_id(), new_batch_id()
        await self.submit(cluster, first, "f")
        await self.submit(cluster, urgent, "u", Priority.LOW)
        await eventually(lambda: cluster.all_read(6))
        assert await operator.reprioritize(urgent, Priority.HIGH) == 3
        await eventually(lambda: cluster.all_read(6))
        engine = ManualEngine(seats=1)
        await cluster.join("w", engine)
        await cluster.finish(urgent, engine)
        await cluster.finish(first, engine)
        exactly_once(await cluster.collect(urgent), 3, "u")
        exactly_once(await cluster.collect(first), 3, "f")
        assert len(engine.started) == len(set(engine.started)) == 6
        assert all(job.startswith(urgent) for job in engine.started[:2])
        await eventually(lambda: cluster.all_read(0))

    async def test_an_unknown_batch_is_said(self, cluster: Cluster) -> None:
        shown = await in_process(cluster.url, "prioritize", "nothing", "high")
        assert shown.code == 1
        assert "no batch nothing" in shown.err
