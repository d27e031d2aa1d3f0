"""Pools on a Redis Cluster and behind Sentinels: real servers, that fail over under the work."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rex
from cluster_fixtures import Cluster, cluster_of, eventually, exactly_once, instant_engine
from manual_engine import ManualEngine
from redis_servers import HOST, Server, cluster_nodes, hand_on, look_for_the_dead, sentinel_pair
from test_planner_tasks import planners_of
from test_replanning import end_jobs

from broker.connection import address, clock, connect, connected, translate
from broker.errors import RedisRefusedError, RedisUnavailableError
from broker.jobs import Priority
from broker.store.operator import OperatorStore, WorkerOrder
from tokenyard import AsyncClient

SERVICE = "the-master"


def cluster_url(nodes: list[Server]) -> str:
    return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in nodes)


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Cluster of one node, which holds all slots."""
    with cluster_nodes(tmp_path_factory.mktemp("node"), 1) as nodes:
        yield nodes[0]


@pytest.fixture
async def on_cluster(one_node: Server, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(cluster_url([one_node]), pool) as cluster:
        yield cluster


@pytest.fixture
def three_nodes(tmp_path: Path) -> Iterator[str]:
    """The address of a Cluster of three, which share the slots."""
    with cluster_nodes(tmp_path, 3) as nodes:
        yield cluster_url(nodes)


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        [
            "redis+sentinel://host:1",
            "redis+sentinel:///service",
            "redis+cluster://",
            "redis+cluster://host:port",
            "redis+cluster://host:1,:2",
            "redis+cluster://host/3",
            "http+cluster://host",
            "redis+other://host",
            "redis+cluster://host?no_such_option=1",
        ],
    )
    def test_what_is_none_is_said_in_one_line(self, url: str) -> None:
        with pytest.raises(RedisUnavailableError, match="TOKENYARD_REDIS_URL is not an address") as caught:
            connect(url)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis+sentinel://me:secret@a:1,b/main/2", "redis+sentinel://a:1,b/main/2"),
            ("rediss+cluster://me:secret@a:1,[::1]:2?x=1", "rediss+cluster://a:1,[::1]:2"),
        ],
    )
    def test_they_are_shown_without_password(self, url: str, shown: str) -> None:
        assert address(url) == shown

    async def test_nobody_there(self) -> None:
        for url in ("redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/main"):
            with pytest.raises(RedisUnavailableError, match="is it running") as raised:
                async with connected(url):
                    pass
            assert "redis.asyncio" not in str(raised.value)  # words for people, no objects

    async def test_a_node_of_a_cluster_is_no_single_server_and_the_other_way_round(
        self, one_node: Server, system_redis_url: str, tmp_path: Path
    ) -> None:
        del system_redis_url
        moved = translate(rex.MovedError("1 127.0.0.1:7000"), "redis://here")
        assert isinstance(moved, RedisRefusedError)
        assert "redis+cluster://" in str(moved)
        with sentinel_pair(tmp_path, SERVICE) as (master, _, _), pytest.raises(RedisRefusedError, match="no Cluster"):
            async with connected(f"redis+cluster://{HOST}:{master.port}"):
                pass


class TestCluster:
    async def test_a_batch_goes_through_and_back(self, on_cluster: Cluster) -> None:
        on_cluster.schedule()
        await on_cluster.join("w", instant_engine(on_cluster.model))
        batch = await on_cluster.submit(300)
        exactly_once(await on_cluster.collect(batch), 300)
        assert await clock(on_cluster.redis, on_cluster.keys.prefix) > 0
        assert await on_cluster.monitor.batches() == [batch]
        await on_cluster.client.forget(batch)

    async def test_the_python_client_reads_in_any_order(self, on_cluster: Cluster) -> None:
        on_cluster.schedule()
        await on_cluster.join("w", instant_engine(on_cluster.model))
        names = [f"r{number}" for number in range(250)]
        async with AsyncClient(on_cluster.url, model=on_cluster.model, durable=False) as client:
            report = await client.submit([{"custom_id": name, "prompt": "x"} for name in names])
            order = names[::-1]
            assert [r.custom_id async for r in client.results(report.batch, order=order)] == order
            assert len([r async for r in client.map(["a", "b"])]) == 2
        assert await OperatorStore(on_cluster.redis, on_cluster.settings.pool).reprioritize("b", Priority.LOW) == 0
        await OperatorStore(on_cluster.redis, on_cluster.settings.pool).order("w", WorkerOrder.PAUSE)
        await on_cluster.in_state("w", "paused")

    async def test_a_silent_worker_and_a_standby(self, on_cluster: Cluster) -> None:
        first = on_cluster.schedule("first", lease_ttl_s=1.0, dead_after_s=1.5)
        await on_cluster.leading("first")
        await on_cluster.puppet("silent")
        batch = await on_cluster.submit(5)
        await eventually(lambda: on_cluster.depth("silent"))
        on_cluster.schedule("second", lease_ttl_s=1.0, dead_after_s=1.5)
        await first.stop()
        await on_cluster.leading("second")
        await on_cluster.join("w", instant_engine(on_cluster.model))
        exactly_once(await on_cluster.collect(batch), 5)

    async def test_the_only_node_is_killed_and_started_again(self, tmp_path: Path, pool: str) -> None:
        with cluster_nodes(tmp_path, 1) as [node]:
            async with cluster_of(cluster_url([node]), pool) as cluster:
                engine = ManualEngine()
                cluster.schedule()
                await cluster.join("w", engine)
                batch = await cluster.submit(20)
                await eventually(lambda: engine.running)
                node.kill()
                node.start()
                await on_again(cluster)
                await cluster.finish(batch, engine)
                exactly_once(await cluster.collect(batch), 20)

    async def test_a_planner_plans_by_itself_and_when_asked(self, on_cluster: Cluster) -> None:
        async with planners_of(on_cluster) as planners:
            planners.start()
            await end_jobs(on_cluster)
            await planners.version(1)
            assert (await planners.ask("replan")).startswith("plan 1")

    async def test_what_is_not_the_pools_in_the_planners_queue_is_removed(self, three_nodes: str, pool: str) -> None:
        async with cluster_of(three_nodes, pool) as cluster, planners_of(cluster) as planners:
            for number in range(20):  # of other servers, most of them
                await cluster.redis.zadd(cluster.keys.arq, {f"foreign-{number}": 1})
            planners.start()
            await end_jobs(cluster)
            await planners.version(1)
            assert (await planners.ask("replan")).startswith("plan 1")


async def on_again(cluster: Cluster) -> None:
    """Wait until the test's own connection works again."""

    async def works() -> bool:
        try:
            return bool(await cluster.redis.exists(cluster.keys.epoch))
        except (rex.RedisError, OSError):
            return False

    await eventually(works, "Redis is back")


async def finish(cluster: Cluster, batch: str, engine: ManualEngine) -> None:
    """End requests until the batch is complete, while Redis comes and goes."""

    async def complete() -> bool:
        engine.finish()
        try:
            return (await cluster.client.counts(batch)).complete
        except (rex.RedisError, OSError):
            return False

    await eventually(complete, f"batch {batch} is complete")


class TestSentinel:
    async def test_everything_goes_on_with_the_new_master(self, tmp_path: Path, pool: str) -> None:
        with sentinel_pair(tmp_path, SERVICE) as (master, replica, sentinel):
            url = f"redis+sentinel://{HOST}:1,{HOST}:{sentinel.port}/{SERVICE}"
            async with cluster_of(url, pool) as cluster:
                engine = ManualEngine()
                cluster.schedule()
                await cluster.join("w", engine)
                batch = await cluster.submit(20)
                await eventually(lambda: engine.running)
                hand_on(master, replica)
                master.kill()
                look_for_the_dead([sentinel], SERVICE)
                await eventually(lambda: replica.info("replication", "role") == "master")
                await on_again(cluster)
                await finish(cluster, batch, engine)
                exactly_once(await cluster.collect(batch), 20)

    @pytest.mark.slow
    async def test_a_master_that_only_stood_still_is_left(self, tmp_path: Path, pool: str) -> None:
        with sentinel_pair(tmp_path, SERVICE) as (master, replica, sentinel):
            url = f"redis+sentinel://{HOST}:{sentinel.port}/{SERVICE}"
            async with cluster_of(url, pool) as cluster:
                engine = ManualEngine()
                cluster.schedule()
                await cluster.join("w", engine)
                batch = await cluster.submit(20)
                await eventually(lambda: engine.running)
                hand_on(master, replica)
                assert master.process is not None
                os.kill(master.process.pid, signal.SIGSTOP)
                look_for_the_dead([sentinel], SERVICE)
                await eventually(lambda: replica.info("replication", "role") == "master")
                os.kill(master.process.pid, signal.SIGCONT)
                await eventually(lambda: master.info("replication", "role") == "slave")
                await on_again(cluster)
                await finish(cluster, batch, engine)
                exactly_once(await cluster.collect(batch), 20)


def port_of(cluster: Cluster) -> int:
    """The port of the node that holds the pool, as the test's own connection knows it."""
    client: Any = cluster.redis
    return client.get_node_from_key(cluster.keys.prefix).port


@pytest.mark.slow
async def test_a_cluster_of_three_fails_over_under_the_work(tmp_path: Path, pool: str) -> None:
    with cluster_nodes(tmp_path, 3, replica_of_each=True) as nodes:
        async with cluster_of(cluster_url(nodes[:3]), pool) as cluster, planners_of(cluster) as planners:
            engine = ManualEngine()
            cluster.schedule()
            planners.start()
            await end_jobs(cluster)
            await planners.version(1)
            await cluster.join("w", engine)
            batch = await cluster.submit(20)
            await eventually(lambda: engine.running)
            home = port_of(cluster)
            [(holder, replica)] = [pair for pair in zip(nodes, nodes[3:], strict=False) if pair[0].port == home]
            hand_on(holder, replica)
            holder.kill()
            look_for_the_dead([node for node in nodes if node is not holder])

            async def moved() -> bool:
                try:
                    await cluster.redis.exists(cluster.keys.epoch)
                except (rex.RedisError, OSError):
                    return False
                return port_of(cluster) != home

            await eventually(moved, "its replica took over")
            await finish(cluster, batch, engine)
            exactly_once(await cluster.collect(batch), 20)
            planners.menu.rates["b"] = 200.0
            await planners.version(2)
            assert (await planners.ask("replan")).startswith("plan 2")
