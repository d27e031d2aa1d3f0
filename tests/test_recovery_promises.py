"""How soon jobs are served again after a death, and who notices it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once

import workers.worker as worker_module
from broker.errors import LeaseLostError
from broker.heartbeat import LOOK_S
from broker.settings import Settings
from broker.store.scheduler import SchedulerStore
from tokenyard.embedded_server import EmbeddedServer
from workers.engines.base import EngineUnavailableError, Load


class TestDefaults:
    def test_jobs_of_a_dead_worker_wait_again_within_ten_seconds(self) -> None:
        """Its last heartbeat; a look that sees it; silence; the look that finds that long enough."""
        settings = Settings()  # type: ignore[call-arg]
        assert settings.heartbeat_interval_s + settings.dead_after_s + 2 * LOOK_S < 10

    def test_a_standby_leads_within_five_seconds(self) -> None:
        """The lease runs out; the standby asks three times in its life."""
        settings = Settings()  # type: ignore[call-arg]
        assert settings.lease_ttl_s * 4 / 3 < 5


class TestEngine:
    async def test_one_that_dies_idle_is_started_again_before_a_job_finds_it_dead(
        self, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mortal(ManualEngine):
            dead = False

            def load(self) -> Load:
                if self.dead:
                    self.dead = False
                    raise EngineUnavailableError("the test killed it")
                return super().load()

        monkeypatch.setattr(worker_module, "_RESTART_FIRST_S", 0.01)
        async with cluster_of(redis_url, pool) as cluster:
            engine = Mortal()
            cluster.schedule()
            await cluster.join("w", engine)
            engine.dead = True
            await eventually(lambda: engine.starts == 2)
            await cluster.in_state("w", "ready")
            batch = await cluster.submit(3)
            await cluster.finish(batch, engine)
            results = await cluster.collect(batch)
            exactly_once(results, 3)
            assert {r.attempt for r in results} == {1}


class TestJoining:
    async def test_a_worker_that_starts_while_redis_is_away_joins_when_it_is_back(
        self, pool: str, tmp_path: Path
    ) -> None:
        server = EmbeddedServer(tmp_path / "data")
        async with cluster_of(server.url, pool) as cluster:
            cluster.start("w", ManualEngine())
            async with server:
                await cluster.in_state("w", "ready")

    async def test_one_that_is_told_to_stop_meanwhile_leaves(self, pool: str, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path / "data")
        async with cluster_of(server.url, pool) as cluster:
            engine = ManualEngine()
            worker = cluster.start("w", engine)
            await worker.stop()
            assert engine.starts == 0


class TestClocks:
    """Redis' clock is set: leases and heartbeats must not live, or die, by that."""

    @staticmethod
    def store(cluster: Cluster, owner: str) -> SchedulerStore:
        pool = cluster.settings.pool
        return SchedulerStore(cluster.redis, pool, owner, lease_ttl_s=0.6, result_ttl_s=60)

    async def test_a_lease_that_redis_keeps_too_long_is_taken_over(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool) as cluster:
            dead, standby = self.store(cluster, "dead"), self.store(cluster, "standby")
            assert await dead.hold_lease()
            await cluster.redis.pexpire(cluster.keys.lease, 3_600_000)
            await eventually(standby.hold_lease)
            assert standby.epoch == dead.epoch + 1
            assert not await dead.hold_lease()
            with pytest.raises(LeaseLostError):
                await dead.read_requests("normal", 1)

    async def test_one_that_is_renewed_is_not(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, pool) as cluster:
            leader, standby = self.store(cluster, "leader"), self.store(cluster, "standby")
            end = asyncio.get_running_loop().time() + 1.3  # more than twice its life
            while asyncio.get_running_loop().time() < end:
                assert await leader.hold_lease()
                await cluster.redis.pexpire(cluster.keys.lease, 3_600_000)
                assert not await standby.hold_lease()

    async def test_a_dead_workers_heartbeat_from_the_future_does_not_keep_its_jobs(
        self, redis_url: str, pool: str
    ) -> None:
        async with cluster_of(redis_url, pool, dead_after_s=1.5) as cluster:
            await cluster.puppet()
            seen = await cluster.monitor.clock() + 3600
            await cluster.write(cluster.keys.worker("w"), seen=f"{seen:.3f}")
            await cluster.submit(3)
            cluster.schedule()
            await eventually(lambda: cluster.depth("w"))
            await cluster.in_state("w", None)
            assert (await cluster.monitor.waiting())["returned"] == 3
