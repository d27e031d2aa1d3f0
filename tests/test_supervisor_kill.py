"""What is killed comes back: the supervisor, a worker that serves, a worker in mid-start; and nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from cluster_fixtures import cluster_of, eventually
from supervised import Site, planned, site_of

from tokenyard.embedded_server import EmbeddedServer
from tokenyard.supervision import process_name


@pytest.fixture
async def site(redis_url: str, pool: str, tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_of(redis_url, pool, tmp_path) as site:
        yield site


async def test_workers_and_supervisor(site: Site) -> None:
    first = await site.start()
    workers = [planned("a"), planned("b")]
    names = [process_name(worker) for worker in workers]
    await site.write(*workers)
    await eventually(lambda: sorted(site.running()) == names, "both start")
    site.kill(names[0])  # deep in its imports
    await site.settled(*workers)
    site.kill(names[1])
    await site.says(f"worker {names[1]} ended: killed by SIGKILL")
    await site.settled(*workers)

    standby = await site.start()
    await site.says("standing by")
    before = site.worker_pids()
    first.kill()
    await first.wait()
    await eventually(lambda: site.said.count("supervising host here") == 2, "the other one takes over")
    assert not before & site.worker_pids()  # those of the first are gone before the second begins
    await site.settled(*workers)
    await site.stop(standby)


async def test_the_server_goes_and_comes_back(pool: str, tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "redis") as server, cluster_of(server.url, pool) as cluster:
        site = Site(cluster, tmp_path)
        try:
            supervisor = await site.start()
            worker, more = planned("a"), planned("b")
            await site.write(worker)
            await site.settled(worker)
            [before] = site.worker_pids()
            await server.stop()
            await site.says("lost Redis")
            await server.start()
            await site.write(worker, more)
            await site.settled(worker, more)
            assert before in site.worker_pids()  # it went on
            await site.stop(supervisor)
        finally:
            site.clear()
            await asyncio.sleep(0)
