"""Submitting: jobs that are safe on disk, a backlog that is full, a server whose memory is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from bare_server import bare_server
from cli_process import tokenyard
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

from broker.client import SubmitOptions, Submitted, new_batch_id
from broker.connection import RedisError, connect, out_of_memory
from broker.errors import NotDurableError, QueueFullError
from broker.store.durability import on_disk
from broker.store.server import server_memory

FENCE = "ty:{test-fence}:fence"


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        await running.register_model()
        yield running


async def submit(cluster: Cluster, count: int, options: SubmitOptions, batch: str = "") -> Submitted:
    return await cluster.client.submit(cluster.requests(count), batch or cluster.batch, options=options)


class TestDurable:
    async def test_the_embedded_server_says_when_jobs_are_on_disk(self, cluster: Cluster) -> None:
        report = await submit(cluster, 600, SubmitOptions(durable=True))
        assert (report.accepted, report.on_disk, report.promise) == (600, True, "")
        assert 0 < await cluster.redis.ttl(cluster.keys.fence) <= 60
        again = await submit(cluster, 600, SubmitOptions(durable=True))
        assert (again.accepted, again.known, again.on_disk) == (0, 600, True)

    async def test_without_it_nothing_is_said(self, cluster: Cluster) -> None:
        report = await submit(cluster, 1, SubmitOptions())
        assert (report.on_disk, report.promise) == (False, "")
        assert not await cluster.redis.exists(cluster.keys.fence)

    async def test_what_cannot_be_said_is_replaced_by_what_is_promised(self, system_redis_url: str) -> None:
        redis = connect(system_redis_url)
        version = (await redis.info("server"))["redis_version"]
        promise = await on_disk(redis, FENCE)
        await redis.aclose()
        newer = tuple(int(part) for part in version.split(".")[:2]) >= (7, 2)
        assert promise == "" if newer else "in its memory" in promise
        assert "\n" not in promise

    async def test_a_server_without_a_file_says_so(self) -> None:
        with bare_server("--appendonly", "no") as url:
            redis = connect(url)
            promise = await on_disk(redis, FENCE)
            await redis.aclose()
        assert "`appendonly no`" in promise

    async def test_jobs_that_a_server_lost_meanwhile_are_an_error(self, cluster: Cluster) -> None:
        redis, key = cluster.redis, cluster.keys.batch(cluster.batch)

        def lose(words: tuple[object, ...], _answer: object) -> asyncio.Event | None:
            if words[0] == "EVALSHA" and lost not in tasks:
                tasks.append(lost)
                return gone
            return None

        async def forget() -> None:
            await redis.execute_command("DEL", key)
            gone.set()

        gone, lost, tasks = asyncio.Event(), object(), list[object]()
        redis.hold = lose
        submitting = asyncio.ensure_future(submit(cluster, 1, SubmitOptions(durable=True)))
        await eventually(lambda: tasks)
        await forget()
        with pytest.raises(NotDurableError, match="submit the same requests"):
            await submitting


class TestBacklog:
    async def test_who_does_not_wait_is_told(self, cluster: Cluster) -> None:
        await submit(cluster, 5, SubmitOptions())
        bounds = SubmitOptions(wait=False, max_backlog_jobs=7)
        with pytest.raises(QueueFullError, match="TOKENYARD_MAX_BACKLOG_JOBS"):
            await submit(cluster, 3, bounds, "other")
        assert (await submit(cluster, 2, bounds, "other")).accepted == 2
        await cluster.client.cancel(cluster.batch)
        await cluster.client.cancel("other")

    async def test_who_waits_goes_on_when_there_is_room(self, cluster: Cluster) -> None:
        told: list[str] = []
        first = await cluster.submit(5)
        batch = new_batch_id()
        options = SubmitOptions(max_backlog_jobs=7, report=told.append)
        waiting = asyncio.ensure_future(submit(cluster, 7, options, batch))
        await eventually(lambda: told)
        assert "is full" in told[0]
        assert not waiting.done()
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        assert (await waiting).accepted == 7
        assert len(told) == 1
        await cluster.client.seal(batch)
        for one, count in ((first, 5), (batch, 7)):
            exactly_once(await cluster.collect(one), count)


class TestOutOfMemory:
    async def test_what_is_queued_goes_on_and_submitters_wait_until_there_is_memory(self, pool: str) -> None:
        with bare_server("--maxmemory-policy", "noeviction") as url:
            async with cluster_of(url, pool) as cluster:
                cluster.schedule()
                engine, another = ManualEngine(), ManualEngine()
                await cluster.join("w", engine)
                batch = await cluster.submit(20)
                await eventually(lambda: len(engine.running) == 5)
                await limit_memory(cluster, "100kb")  # less than an empty server needs
                told: list[str] = []
                with pytest.raises(RedisError) as refused:
                    await submit(cluster, 1, SubmitOptions(wait=False), "impatient")
                assert out_of_memory(refused.value)
                waiting = asyncio.ensure_future(submit(cluster, 9, SubmitOptions(report=told.append), "patient"))
                await eventually(lambda: told)
                assert "out of memory" in told[0]

                shown = await tokenyard(url, "status")
                assert "Redis is out of memory" in shown.out
                memory = await server_memory(cluster.redis)
                assert memory is not None
                assert (memory.full, memory.evicts, memory.limit) == (True, False, 100 * 2**10)

                await cluster.finish(batch, engine)
                exactly_once(await cluster.collect(batch), 20)
                await cluster.join("another", another)
                assert not waiting.done()
                await limit_memory(cluster, "0")
                assert (await waiting).accepted == 9
                await cluster.client.seal("patient")
                await cluster.finish("patient", engine, another)
                exactly_once(await cluster.collect("patient"), 9)

    async def test_a_server_that_deletes_keys_is_named(self) -> None:
        with bare_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as url:
            shown = await tokenyard(url, "status")
        assert "maxmemory-policy is allkeys-lru" in shown.out
        assert "out of memory" not in shown.out


async def limit_memory(cluster: Cluster, size: str) -> None:
    await cluster.redis.config_set("maxmemory", size)
