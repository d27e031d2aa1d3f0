"""Every kind of key of a cluster that runs, filled with malformed entries: nothing dies or loops, each is reported.

``pytest -s tests/test_vandal_corpus.py`` prints how many entries of each kind it writes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from cluster_fixtures import Cluster, cluster_of, eventually, exactly_once, instant_engine
from vandal_corpus import BATCH, BYTES, FAMILIES, MEMBERS, VALUES, families_in_use, write_malformed

from broker.store.dead import DeadLetterStore
from broker.store.live import LivePosition, read_live
from broker.store.plans import PlanStore
from broker.store.profiles import ProfileStore
from broker.store.terms import TermsStore
from planner.tasks import PlannerProcess, PlannerTasks
from tokenyard.cluster_snapshot import newest_batches, read_cluster

#: Whoever has these taken from it needs a while to have them again: not every time.
DEAR = ("lease", "worker", "epoch")


def test_no_kind_of_key_is_missing() -> None:
    assert set(FAMILIES) == families_in_use()
    assert [name for name, family in FAMILIES.items() if not family.told and not family.why] == []


@pytest.fixture
async def cluster(any_redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(any_redis_url, pool, dead_after_s=2.0, lease_ttl_s=1.0) as running:
        yield running
        await redis_of(running).hdel("ty:models", BYTES)  # which other tests use, too
        await redis_of(running).srem("ty:pools", *MEMBERS)


def redis_of(cluster: Cluster) -> Any:
    """redis-py annotates its sync and its async client with one type, which fits neither."""
    return cluster.redis


class NoReplanner:
    """A planner that looks and finds nothing."""

    def __init__(self, pool: str) -> None:
        self.pool = pool

    async def look(self, *, at_once: bool) -> str:
        return "looked"


async def measure(options: Any) -> str:
    return "measured"


class Readers:
    """Whoever reads a pool's keys beside its scheduler and its workers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.told: list[str] = []
        self.plans = PlanStore(cluster.redis, cluster.settings.pool)

    async def read(self) -> None:
        """All, as status, planner, supervisor, gateway and operator do."""
        cluster, pool = self.cluster, self.cluster.settings.pool
        self.told.append((await self.plans.read()).problem)
        await self.plans.recent_mix(60)
        await self.plans.start_seconds()
        await self.plans.note()
        await self.plans.without_supervisor(["h"])
        await self.plans.take_turn("mine", 1)
        await ProfileStore(cluster.redis, pool).all()
        self.told += (await TermsStore(cluster.redis, pool).all())[1]
        letters = DeadLetterStore(cluster.redis, pool)
        await letters.letters(await letters.ids())
        await read_live(cluster.redis, cluster.keys, BATCH, LivePosition(), 0)
        await read_cluster(cluster.client, await newest_batches(cluster.client, 10))
        await cluster.client.registry.models()


async def told_of(look: Callable[[], str], pattern: str) -> None:
    """Wait until it is in what was told."""
    await eventually(lambda: re.search(pattern, look()), f"told: {pattern}")


async def is_calm(calls: Callable[[], Awaitable[int]]) -> bool:
    """Whether hardly anything is asked of Redis in a second."""
    before = await calls()
    await asyncio.sleep(1)
    return await calls() - before < 250  # beats, leases, looks and arq's polls; a loop makes thousands


async def test_nothing_dies_or_loops_and_each_is_reported(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    redis, readers, wrote = redis_of(cluster), Readers(cluster), Counter[str]()
    running = [cluster.schedule().task]
    running += [(await cluster.join(f"w{i}", instant_engine(cluster.model))).task for i in range(2)]
    tasks = PlannerTasks(NoReplanner(cluster.settings.pool), measure)  # type: ignore[arg-type]
    planner = asyncio.ensure_future(PlannerProcess(cluster.url, cluster.settings.pool, tasks, 3600).run())
    try:
        exactly_once(await cluster.collect(await cluster.submit(5)), 5)
        for turn in range(len(VALUES)):
            for name in FAMILIES:
                if name not in DEAR or turn % 4 == 3:
                    wrote += await write_malformed(redis, cluster.keys, name, turn)
            await readers.read()
            exactly_once(await cluster.collect(await cluster.submit(5)), 5)
        for name, family in FAMILIES.items():
            if family.told:
                await told_of(lambda: "\n".join([caplog.text, *readers.told]), family.told)
                assert wrote[name]

        async def calls() -> int:
            stats: Any = await redis.info("commandstats")
            asked = ("xreadgroup", "xread", "evalsha", "zrangebyscore")
            return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in asked)

        await eventually(lambda: is_calm(calls), "the cluster is idle")
        assert not any(task.done() for task in (*running, planner))
        print(f"\n{sum(wrote.values()):,} malformed entries of {len(wrote)} kinds:", dict(wrote))
    finally:
        planner.cancel()
        await asyncio.gather(planner, return_exceptions=True)
