"""What anybody may write into Redis under a running cluster, and what is left there at its end."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

import pytest
from cluster_fixtures import Cluster, cluster_of, eventually, exactly_once, instant_engine

from broker import keys as keys_module


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


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
        assert await cluster.waiting() == 0
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


async def only_worker_left(cluster: Cluster) -> bool:
    return await cluster.redis.zrange(cluster.keys.workers, 0, -1) == [b"w"]


async def depth_is_zero(cluster: Cluster) -> bool:
    return await cluster.depth("w") == 0


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
        assert await cluster.waiting() == 0

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
