"""Submissions that are safe elsewhere, too: on a Cluster's disk, and at replicas that take over."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_fixtures import Cluster, cluster_of, exactly_once, instant_engine
from redis_servers import HOST, Server, cluster_nodes, master_and_replica, redis_server

import broker.store.durability as durability
from broker.client import SubmitOptions, Submitted
from broker.connection import connect
from broker.errors import NotDurableError
from tokenyard.embedded_server import find_binary

REPLICATED = SubmitOptions(durable=True, durable_replicas=1)


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> str:
    return str(find_binary()) if request.param == "valkey" else redis_server()


def url_of(server: Server) -> str:
    return f"redis://{HOST}:{server.port}/0"


async def submit(cluster: Cluster, count: int, options: SubmitOptions) -> Submitted:
    await cluster.register_model()
    return await cluster.client.submit(cluster.requests(count), cluster.batch, options=options)


async def test_what_a_replica_said_that_it_has_outlives_the_master(tmp_path: Path, pool: str, binary: str) -> None:
    with master_and_replica(tmp_path, binary) as (master, replica):
        async with cluster_of(url_of(master), pool) as cluster:
            report = await submit(cluster, 500, REPLICATED)
            assert (report.accepted, report.replicas) == (500, 1)
            assert report.on_disk or "1 of its replicas have them, too" in report.promise
        master.kill()  # at once: nothing is handed on after the answer
        replica.say("REPLICAOF", "NO", "ONE")
        async with cluster_of(url_of(replica), pool) as cluster:
            cluster.schedule()
            await cluster.join("w", instant_engine(cluster.model))
            await cluster.client.seal(cluster.batch)
            exactly_once(await cluster.collect(cluster.batch), 500)


async def test_a_replica_that_does_not_follow_is_an_error(
    tmp_path: Path, pool: str, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability, "_ASK_MS", 100)
    monkeypatch.setattr(durability, "_PATIENCE_S", 1.0)
    with master_and_replica(tmp_path, binary) as (master, replica):
        replica.say("REPLICAOF", "NO", "ONE")
        master.say("CONFIG SET", "appendfsync", "always")
        async with cluster_of(url_of(master), pool) as cluster:
            with pytest.raises(NotDurableError, match="0 of 1 replicas have them") as raised:
                await submit(cluster, 3, REPLICATED)
            assert "TOKENYARD_DURABLE_REPLICAS" in str(raised.value)
            assert "\n" not in str(raised.value)
            assert (await submit(cluster, 3, SubmitOptions(durable=True))).known == 3  # they are queued all the same


async def test_a_cluster_that_cannot_say_so_says_what_is_promised(tmp_path: Path) -> None:
    with cluster_nodes(tmp_path, 1, binary=redis_server()) as [node]:
        redis = connect(f"redis+cluster://{HOST}:{node.port}")
        await redis.initialize()
        promise = await durability.on_disk(redis, "ty:{test-fence}:fence")
        version = str(node.info("server", "redis_version"))
        await redis.aclose()
    newer = tuple(int(part) for part in version.split(".")[:2]) >= (7, 2)
    assert promise == "" if newer else "in its memory" in promise


async def test_on_a_cluster_it_is_the_node_that_holds_the_pool(tmp_path: Path, pool: str) -> None:
    with cluster_nodes(tmp_path, 1, replica_of_each=True, binary=str(find_binary())) as nodes:
        async with cluster_of(f"redis+cluster://{HOST}:{nodes[0].port}", pool) as cluster:
            report = await submit(cluster, 10, REPLICATED)
            assert (report.on_disk, report.replicas) == (True, 1)
