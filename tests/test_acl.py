"""The users that ``tokenyard acl`` prints, on real servers: each can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rex
from acl_server import POOL, AclServer, RoleCluster, acl_server, binary_of
from cli_process import in_process
from cluster_fixtures import ManualEngine, cuttable, eventually, exactly_once, instant_engine

from broker.acl import Role
from broker.client import Client, SubmitOptions, new_batch_id
from broker.errors import QueueFullError
from broker.jobs import Priority, job_id
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.dead import DeadLetterStore
from broker.store.monitor import MonitorStore
from broker.store.operator import OperatorStore, WorkerOrder
from broker.store.plans import PlanStore
from broker.store.profiles import ProfileStore
from planner.tasks import PlannerProcess, PlannerTasks, ask
from tokenyard.cluster_snapshot import newest_batches, read_cluster


@pytest.fixture(params=["valkey", "redis"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AclServer]:
    async with acl_server(binary_of(request.param), tmp_path, POOL) as running:
        yield running


@pytest.fixture
async def cluster(server: AclServer) -> AsyncIterator[RoleCluster]:
    running = RoleCluster(server, dead_after_s=1.5)
    yield running
    await running.close()


class TestWork:
    async def test_a_cluster_runs_with_a_user_for_each_role(self, cluster: RoleCluster) -> None:
        cluster.schedule()
        slow = ManualEngine()
        dying = await cluster.join("dying", slow)
        batch = await cluster.submit(6)
        await eventually(lambda: slow.running)
        await dying.kill()  # declared dead, its jobs come back
        other = await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 6)
        assert (await cluster.client.counts(batch)).complete
        await cluster.client.forget(batch)
        await other.stop()

    async def test_a_batch_is_cancelled_while_it_runs(self, cluster: RoleCluster) -> None:
        cluster.schedule()
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await cluster.submit(30)
        await eventually(lambda: engine.running)
        await cluster.client.cancel(batch)
        results = await cluster.collect(batch)
        assert {r.error_code for r in results} == {"batch_cancelled"}

    async def test_a_monitor_sees_the_cluster_and_its_batches(self, cluster: RoleCluster, server: AclServer) -> None:
        cluster.schedule()
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await cluster.submit(3)
        await eventually(lambda: len(engine.running) == 3)
        monitor = Client(server.connect(server.url_of(Role.MONITOR)), 60)
        assert await newest_batches(monitor, 10) == [batch]
        snapshot = await read_cluster(monitor, [batch])
        assert snapshot.batches[batch].total == 3
        assert snapshot.pools[0].workers["w"] is not None
        assert snapshot.pools[0].scheduler == "first"
        assert await cluster.monitor.last_event() != "0"

    async def test_a_planner_looks_plans_and_is_asked(self, server: AclServer) -> None:
        redis = server.connect(server.url_of(Role.PLANNER))
        plans = PlanStore(redis, POOL)
        plan = PoolPlan(1, 0.0, (PlannedWorker("w", "h", options=("--engine", "simulated")),))
        assert await plans.write(plan, await plans.read()) is not None
        assert (await plans.read()).plan is not None
        await plans.recent_mix(60)
        assert await plans.start_seconds() is None
        await plans.keep_note(b"{}")
        assert await plans.note() == b"{}"
        assert await ProfileStore(redis, POOL).all() == []
        assert await MonitorStore(redis, POOL).heartbeats() == {}

    async def test_the_planner_s_arq_runs(self, server: AclServer) -> None:
        redis = server.connect(server.url_of(Role.PLANNER))
        process = PlannerProcess(server.url_of(Role.PLANNER), POOL, PlannerTasks(Looks(), _measure), 3600)  # type: ignore[arg-type]
        running = asyncio.ensure_future(process.run())
        try:
            assert await ask(redis, POOL, "replan", timeout_s=30) == "looked"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def test_a_supervisor_reads_the_plan_and_takes_its_turn(self, server: AclServer) -> None:
        planner = PlanStore(server.connect(server.url_of(Role.PLANNER)), POOL)
        await planner.write(PoolPlan(1, 0.0, ()), await planner.read())
        plans = PlanStore(server.connect(server.url_of(Role.SUPERVISOR)), POOL)
        assert (await plans.read()).plan is not None
        await plans.note_start("h", 3.0)
        assert await plans.start_seconds() == 3.0
        assert await plans.take_turn("h", 5)
        assert await plans.take_turn("h", 5)
        await plans.end_turn("h")
        await plans.mark_hosts(["h"])
        for role in (Role.PLANNER, Role.MONITOR):
            seen = PlanStore(server.connect(server.url_of(role)), POOL)
            assert await seen.without_supervisor(["h", "other"]) == ["other"]


class Looks:
    """A planner that looks and finds nothing."""

    pool = POOL

    async def look(self, *, at_once: bool) -> str:
        return "looked"


async def _measure(options: Any) -> str:
    return "measured"


class TestTenants:
    async def test_a_client_of_a_tenant_submits_and_collects_its_own(self, server: AclServer) -> None:
        cluster = RoleCluster(server)
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        await cluster.collect(await cluster.submit(2))
        acme = cuttable(server.url_of(Role.CLIENT, "acme"))
        client = Client(acme, 60)
        batch = new_batch_id("acme")
        assert batch.startswith("acme:batch_")
        await client.submit(cluster.requests(4), batch)
        await client.seal(batch)
        results = [result async for chunk in client.results(batch) for result in chunk]
        exactly_once(results, 4)
        with pytest.raises(rex.NoPermissionError):
            await cluster.client.counts(batch)
        await acme.aclose()
        await cluster.close()


class TestOperator:
    async def test_dead_letters_are_read_tried_again_and_dropped(self, cluster: RoleCluster, server: AclServer) -> None:
        cluster.schedule()
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await cluster.submit(2)
        await eventually(lambda: len(engine.running) == 2)
        engine.finish(status_code=400)
        assert [r.status_code for r in await cluster.collect(batch)] == [400, 400]
        letters = DeadLetterStore(server.connect(server.url_of(Role.OPERATOR)), POOL)
        first, second = await letters.ids()
        url = server.url_of(Role.OPERATOR)
        for words in (["list"], ["show", first], ["retry", first], ["drop", second]):
            done = await in_process(url, "dead", *words, "--pool", POOL)
            assert done.code == 0, (words, done.err)
        assert await letters.ids() == []
        [again] = [name for name in await cluster.monitor.batches() if name != batch]
        await cluster.finish(again, engine)
        assert [r.ok for r in await cluster.collect(again)] == [True]

    async def test_batches_and_single_jobs_are_cancelled(self, cluster: RoleCluster, server: AclServer) -> None:
        operator = Client(server.connect(server.url_of(Role.OPERATOR)), 60)
        cluster.schedule()
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await cluster.submit(30)
        await eventually(lambda: len(engine.running) == 5)
        names = {f"r{n}": job_id(batch, f"r{n}") for n in range(30)}
        running = {name for name, job in names.items() if any(run.startswith(job) for run in engine.running)}
        one, other = min(running), min(names.keys() - running)
        assert await operator.cancel_jobs(batch, [one, other]) == 2
        await eventually(lambda: any(run.startswith(names[one]) for run in engine.aborted), "the engine aborts it")
        await operator.cancel(batch)
        assert {r.error_code for r in await cluster.collect(batch)} == {"batch_cancelled"}

    async def test_what_waits_is_moved_and_devices_follow(self, cluster: RoleCluster, server: AclServer) -> None:
        await cluster.register_model_as(Role.WORKER)
        batch = await cluster.submit(5)
        operator = OperatorStore(server.connect(server.url_of(Role.OPERATOR)), POOL)
        assert await operator.reprioritize(batch, Priority.HIGH) == 5
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 5)
        await operator.order("w", WorkerOrder.PAUSE)
        await cluster.in_state("w", "paused")
        shares = await in_process(server.url_of(Role.OPERATOR), "tenants", "acme", "--weight", "2", "--pool", POOL)
        assert shares.code == 0, shares.err


class TestFullBacklog:
    async def test_a_client_is_told_that_it_is_full(self, cluster: RoleCluster) -> None:
        await cluster.register_model_as(Role.WORKER)
        await cluster.submit(3)
        with pytest.raises(QueueFullError):
            await cluster.client.submit(
                cluster.requests(2), new_batch_id(), options=SubmitOptions(wait=False, max_backlog_jobs=3)
            )

    @pytest.mark.parametrize("role", [Role.CLIENT, Role.GATEWAY])
    async def test_it_may_ask_whether_jobs_are_on_disk_and_at_replicas(self, server: AclServer, role: Role) -> None:
        redis = server.connect(server.url_of(role))
        assert await redis.wait(0, 10) == 0
        with pytest.raises(rex.ResponseError) as raised:
            await redis.execute_command("WAITAOF", 1, 0, 10)
        assert not isinstance(raised.value, rex.NoPermissionError)  # but that the server has no such file, or command
