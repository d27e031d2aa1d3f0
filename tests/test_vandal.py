"""Malformed entries in every stream and hash of a cluster that runs: nothing dies or loops, good jobs all complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cluster_fixtures import CHAT, Cluster, cluster_of, eventually, exactly_once
from redis.exceptions import ResponseError
from vandal_corpus import BYTES, ENTRIES, VALUES

from broker.jobs import job_id
from broker.keys import LEVELS, PoolKeys
from broker.throughput import Profile
from workers.engines.simulated import SimulatedEngine, SimulatedOptions


@pytest.fixture
async def cluster(any_redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(any_redis_url, pool, dead_after_s=2.0, lease_ttl_s=1.0) as running:
        yield running


def engine(model: str) -> SimulatedEngine:
    """An engine that takes 2 ms a step: long enough that jobs run while the malformed entries come."""
    profile = Profile(2e-3, 0.0, 0.0, 2e-3, 0.0, 0.0, kv_tokens=100_000, seats=4)
    return SimulatedEngine(SimulatedOptions(profile=profile, models=(model,)))


def any_redis(cluster: Cluster) -> Any:
    """redis-py annotates its sync and its async client with one type, which fits neither."""
    return cluster.redis


async def fill_streams(cluster: Cluster, keys: PoolKeys) -> dict[str, list[str]]:
    """Malformed entries into every stream there is; returns the ids of those that must be told of, by stream."""
    streams = [*map(keys.requests, LEVELS), keys.events, keys.recent, keys.device("w0"), keys.control("w0")]
    wrote: dict[str, list[str]] = {}
    for stream in streams:
        wrote[stream] = [(await any_redis(cluster).xadd(stream, fields)).decode() for fields in ENTRIES]
    return wrote


async def fill_hashes(cluster: Cluster, keys: PoolKeys) -> None:
    """Malformed fields into every hash, those of the running workers and of the lease among them."""
    owned = [keys.worker("w0"), keys.worker("ghost"), keys.lease, keys.profiles, keys.plan, keys.starts]
    owned += [keys.ended("b"), keys.batch("b"), keys.losers("w0"), keys.job("b.x")]
    for number, key in enumerate(owned):
        fields = await any_redis(cluster).hkeys(key) or [b"state", b"total", b"plan", b"version"]
        for shift, field in enumerate(fields):
            await any_redis(cluster).hset(key, field, VALUES[(number + shift) % len(VALUES)])
        await any_redis(cluster).hset(key, BYTES, BYTES)
    await any_redis(cluster).hset("ty:models", BYTES, BYTES)
    await any_redis(cluster).sadd("ty:pools", BYTES)
    await any_redis(cluster).zadd(keys.workers, {"ghost": 1, BYTES: 2, "": 3})
    await any_redis(cluster).zadd(keys.batches, {BYTES: 1, "x" * 5000: 2})


async def forge_jobs(cluster: Cluster, keys: PoolKeys) -> list[str]:
    """Sound entries of jobs whose hash or body is not: they reach a worker."""
    whole = {"state": "queued", "batch": "f", "custom_id": "c", "url": CHAT, "attempt": "1", "submitted": "1"}
    spoiled = [{}, *({name: value} for name in whole if name != "state" for value in (BYTES, b"", b"9" * 400))]
    names: list[str] = []
    for number, odd in enumerate([*spoiled, *({name: None} for name in whole if name != "state")]):
        name = f"f.{number}"
        fields = {key: value for key, value in (whole | odd).items() if value is not None}
        await any_redis(cluster).hset(keys.job(name), mapping=fields)
        await any_redis(cluster).set(keys.body(name), BYTES if number % 2 else b'{"model": []}')
        entry = {"job": name, "batch": "f", "priority": "normal", "body_bytes": "1", "max_tokens": "1"}
        await any_redis(cluster).xadd(keys.requests("normal"), entry)
        names.append(name)
    return names


class TestVandal:
    async def test_good_jobs_complete_and_nothing_dies(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        keys = cluster.keys
        scheduler = cluster.schedule()
        workers = [await cluster.join(f"w{i}", engine(cluster.model)) for i in range(2)]
        batch = await cluster.submit(60)
        await eventually(lambda: cluster.done(batch, 1))
        wrote = await fill_streams(cluster, keys)
        forged = await forge_jobs(cluster, keys)
        await fill_hashes(cluster, keys)
        exactly_once(await cluster.collect(batch), 60)
        # results that are none are skipped, and told of
        bad = [(await any_redis(cluster).xadd(keys.results(batch), fields)).decode() for fields in ENTRIES]
        exactly_once(await cluster.collect(batch), 60)
        exactly_once(await cluster.collect(await cluster.submit(20)), 20)

        async def cleared() -> bool:
            left = [
                await any_redis(cluster).xlen(stream) for stream in (*map(keys.requests, LEVELS), keys.device("w0"))
            ]
            return not any(left) and not await any_redis(cluster).exists(*map(keys.job, forged))

        await eventually(cleared, "what is no job is out of the queues")
        assert not scheduler.task.done()
        assert not any(worker.task.done() for worker in workers)
        for stream in (keys.requests("normal"), keys.device("w0"), keys.events):
            told = [entry for entry in wrote[stream] if entry in caplog.text]
            assert len(told) >= len(ENTRIES) // 3, stream
        assert any(entry in caplog.text for entry in bad)
        assert "order {" in caplog.text
        assert (await cluster.client.counts(batch)).done == 60

    async def test_nothing_loops(self, cluster: Cluster) -> None:
        """With malformed entries everywhere an idle cluster is idle: what is read again and again would show."""
        cluster.schedule()
        await cluster.join("w0", engine(cluster.model))
        batch = await cluster.submit(5)
        await cluster.collect(batch)
        await fill_streams(cluster, cluster.keys)
        await forge_jobs(cluster, cluster.keys)
        await fill_hashes(cluster, cluster.keys)
        await cluster.collect(await cluster.submit(5))

        async def calls() -> int:
            stats = await any_redis(cluster).info("commandstats")
            return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("xreadgroup", "xread", "evalsha"))

        async def is_calm() -> bool:
            before = await calls()
            await asyncio.sleep(1)
            return await calls() - before < 200  # beats, leases and looks; a loop makes thousands

        await eventually(is_calm, "the cluster is idle")

    async def test_the_job_of_a_spoiled_hash_ends_or_goes(self, cluster: Cluster) -> None:
        """A job in the queue whose hash is spoiled: its batch goes on all the same."""
        await cluster.register_model()
        batch = await cluster.submit(3)
        first = cluster.keys.job(job_id(batch, "r0"))
        await any_redis(cluster).hset(first, mapping={"attempt": "many", "submitted": BYTES, "max_tokens": "-"})
        cluster.schedule()
        await cluster.join("w", engine(cluster.model))
        exactly_once(await cluster.collect(batch), 3)


async def test_a_server_that_refuses_says_so(any_redis_url: str, pool: str) -> None:
    """A key of another kind is refused by name, not passed over."""
    async with cluster_of(any_redis_url, pool) as cluster:
        await cluster.register_model()
        await any_redis(cluster).set(cluster.keys.requests("normal"), "a string")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await cluster.submit(1)
