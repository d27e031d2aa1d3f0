"""``tokenyard supervisor``: back to the plan before where the new one does not start; up and down with the work."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from cluster_fixtures import eventually, exactly_once
from supervised import Site, planned, site_of

from broker.pool_plan import PlannedWorker
from tokenyard.supervision import process_name


@pytest.fixture
async def site(redis_url: str, pool: str, tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_of(redis_url, pool, tmp_path) as site:
        yield site


async def test_what_does_not_start_gives_way_to_the_plan_before(site: Site) -> None:
    supervisor = await site.start()
    good = planned("a", devices=(0,))
    await site.write(good)
    await site.settled(good)
    await site.write(PlannedWorker("a", "here", (*good.options, "--profile", "/nowhere.json"), devices=(0,)))
    await site.says("does not start here (cannot read the profile /nowhere.json")
    await site.says("back to plan 1")
    await site.settled(good)
    await site.stop(supervisor)


@pytest.mark.slow
async def test_a_supervisor_that_comes_after_knows_the_plan_before_too(site: Site) -> None:
    first = await site.start()
    good = planned("a", devices=(0,))
    await site.write(good)
    await site.settled(good)
    await site.says("is ready after")
    await eventually(lambda: list(site.folder.glob("*.plan")), "it keeps the plan that serves")
    first.kill()
    await first.wait()
    await site.write(PlannedWorker("a", "here", (*good.options, "--profile", "/nowhere.json"), devices=(0,)))
    second = await site.start()
    await site.says("back to plan 1")
    await site.settled(good)
    await site.stop(second)


async def test_up_when_work_comes_and_down_when_it_is_done(site: Site) -> None:
    cluster = site.cluster
    cluster.schedule()
    supervisor = await site.start("--drain-s", "1", "--cool-down-s", "1")
    fast = planned("a", rate=1000.0)
    workers = [fast, planned("b", rate=400.0), planned("c", rate=300.0)]
    await cluster.register_model()
    await site.write(*workers, least=1)
    await site.settled(fast)
    batch = await cluster.submit(5000)
    await eventually(lambda: {process_name(w) for w in workers} <= _ever_ready(site), "all were started")
    exactly_once(await cluster.collect(batch), 5000)
    await site.settled(fast)
    await site.stop(supervisor)


def _ever_ready(site: Site) -> set[str]:
    return {line.split("worker ")[1].split(" ")[0] for line in site.said.splitlines() if " is ready after " in line}
