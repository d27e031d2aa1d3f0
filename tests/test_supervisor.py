"""``tokenyard supervisor`` against a real server: the pool follows its plan, and stays where that has no sense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from cluster_fixtures import eventually, exactly_once
from supervised import Site, planned, site_of

from tokenyard.supervision import process_name


@pytest.fixture
async def site(redis_url: str, pool: str, tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_of(redis_url, pool, tmp_path) as site:
        yield site


async def test_a_change_under_load_loses_nothing_and_somebody_always_serves(site: Site) -> None:
    cluster = site.cluster
    cluster.schedule()
    supervisor = await site.start()
    await site.says("supervising host here")
    first = [planned("a", "--seats", "2"), planned("b", "--seats", "2")]
    await site.write(*first)
    await site.settled(*first)

    served: list[int] = []
    feeding = asyncio.Event()

    async def feed() -> list[str]:
        batches: list[str] = []
        while not feeding.is_set():
            batches.append(await cluster.submit(20, prefix=f"s{len(batches)}-"))
            served.append(len(await site.ready()))
            await asyncio.sleep(0.02)
        return batches

    feeder = asyncio.ensure_future(feed())
    second = [planned("a", "--seats", "4"), first[1]]
    await site.write(*second)
    await site.settled(*second)
    feeding.set()
    for number, batch in enumerate(await feeder):
        exactly_once(await cluster.collect(batch), 20, f"s{number}-")
    assert min(served) >= 1
    await site.stop(supervisor)


async def test_a_device_goes_from_one_to_the_next(site: Site) -> None:
    """Two on two devices, then one on both: the second has nobody beside it, and yet there are never two on one."""
    supervisor = await site.start()
    pair = [planned("a", devices=(0,)), planned("b", devices=(1,))]
    await site.write(*pair)
    await site.settled(*pair)
    both = planned("a", devices=(0, 1))
    await site.write(both)

    async def moved() -> bool:
        running = site.running()
        assert process_name(both) not in running or len(running) == 1
        return await site.ready() == {process_name(both)} and len(running) == 1

    await eventually(moved)
    await site.stop(supervisor)


async def test_what_makes_no_sense_leaves_the_pool_as_it_was(site: Site) -> None:
    supervisor = await site.start()
    worker = planned("a")
    await site.write(worker)
    await site.settled(worker)
    wrong = [
        (
            planned("a", host="there"),
            "plan 2 has no worker for host here (it names there): what runs here stays",
        ),
        (planned("a", "--seats", "many"), "plan 3, worker a: Invalid value for '--seats'"),
        (planned("a", "--url", "http://x"), "plan 4, worker a: '--url' is no option that a plan may give"),
        (planned("a", "--model", "theirs"), "plan 5, worker a: the model 'theirs' is none of those that may run here"),
    ]
    for other, said in wrong:
        await site.write(other)
        await site.says(said)
    await site.cluster.write(site.plans.keys.plan, version="7", plan="{")
    await site.says("not a plan")
    await site.cluster.redis.delete(site.plans.keys.plan)
    await site.says("the plan was deleted")
    await site.cluster.redis.set(site.plans.keys.plan, "not even a hash")
    await site.says("of another kind")
    await site.settled(worker)
    assert await site.plans.without_supervisor(["here", "there"]) == ["there"]
    assert (site.said.count(" starts (log: "), site.said.count(" drains")) == (1, 0)
    await site.write(planned("b"))
    await site.settled(planned("b"))
    await site.write(planned("b", host="there"), idle=("here",))
    await site.settled()
    await site.stop(supervisor)
