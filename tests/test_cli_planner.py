"""``tokenyard planner`` and ``replan`` as processes: killed and started again, asked, and given what makes no sense."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from cli_process import start, tokenyard
from cluster_fixtures import PATIENCE_S, Cluster, cluster_of, eventually
from pydantic import SecretStr
from test_inventory_planning import MODEL, RECORD
from test_replanning import end_jobs, plans

from broker.store.profiles import ProfileStore
from planner.tasks import ask
from tokenyard.planner_process import measure_here

MACHINES = '[[machine]]\nname = "h1"\ndevices = [{ kind = "L4", count = 2 }]\n'


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as cluster:
        await end_jobs(cluster)
        await ProfileStore(cluster.redis, pool).save(RECORD)
        yield cluster


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    path = tmp_path / "machines.toml"
    path.write_text(MACHINES)
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.toml"
    path.write_text(MACHINES.replace("kind", "knid"))
    return path


async def test_killed_and_started_again_it_goes_on_with_its_plan(cluster: Cluster, machines: Path) -> None:
    pool = cluster.settings.pool
    words = ["planner", machines, "--model", MODEL, "--pool", pool, "--every-s", "5", "--watch-s", "0"]
    first = await start(cluster.url, *words)
    await first.says("plan 1: ")
    first.process.kill()
    await first.process.wait()
    second = await start(cluster.url, *words)
    asked = await tokenyard(cluster.url, "replan", "--pool", pool)
    assert asked.out == "plan 1 is the best for this mix\n"
    second.interrupt()
    ended = await second.end()
    assert ended.code == 0
    assert "Traceback" not in ended.err
    plan = (await plans(cluster).read()).plan
    assert plan is not None
    assert {worker.host for worker in plan.workers} == {"h1"}


async def test_of_two_planners_one_is_killed_and_the_other_goes_on(cluster: Cluster, machines: Path) -> None:
    pool = cluster.settings.pool
    words = ["planner", machines, "--model", MODEL, "--pool", pool, "--every-s", "5", "--watch-s", "0"]
    first, second = [await start(cluster.url, *words) for _ in range(2)]
    for planner in (first, second):
        await planner.says("planning for pool")
    first.process.kill()
    await first.process.wait()
    await eventually(plans(cluster).token, "the other one plans")
    await cluster.redis.delete(cluster.keys.plan)
    said = await ask(cluster.redis, pool, "replan", timeout_s=PATIENCE_S)
    assert said.startswith(("plan 1: ", "plan 1 is the best"))
    second.interrupt()
    assert (await second.end()).code == 0


async def test_an_inventory_with_a_typo_is_one_line_and_no_plan(cluster: Cluster, wrong: Path) -> None:
    pool = cluster.settings.pool
    ended = await tokenyard(cluster.url, "planner", wrong, "--model", MODEL, "--pool", pool)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert (await plans(cluster).read()).token == ""


async def test_it_measures_on_this_host(cluster: Cluster) -> None:
    settings = cluster.settings.model_copy(update={"redis_url": SecretStr(cluster.url)})
    said = await measure_here(settings, "m")(["--engine", "simulated"], socket.gethostname())
    assert said.startswith(f"measured --engine simulated on {socket.gethostname()}: ")

    async def stored() -> bool:
        records = await ProfileStore(cluster.redis, settings.pool).all()
        return {record.model for record in records} == {MODEL, "m"}

    await eventually(stored)
