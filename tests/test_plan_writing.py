"""``tokenyard plan --write``: the plan that supervisors read, or the pool as it was."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path

import pytest
from cli_process import Ended, tokenyard
from cluster_fixtures import Cluster, cluster_of
from plan_machines import estimator, machine, space
from test_plan_command import INVENTORY, folder
from typer.testing import CliRunner

from broker.length_class import LengthClass
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.plans import HOST_TTL_S, PlanStore
from planner.cluster_plan import ClusterPlan
from planner.layouts import machine_types
from planner.search import search
from tokenyard.cli import app
from tokenyard.plan_writing import PlanOverwrittenError, read_plan, said, write_plan
from tokenyard.supervision import own_workers

__all__ = ["folder"]

MODEL = ("--model", "small-model")
HOSTS = ("big", "l4-1", "l4-2", "l4-3", "l4-4", "h1")
BEFORE = PoolPlan(1, 0.0, (PlannedWorker("a", "old-host", ("--seats", "8")),), min_workers=1)


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as cluster:
        await plans(cluster).mark_hosts(HOSTS)
        yield cluster


def plans(cluster: Cluster) -> PlanStore:
    return PlanStore(cluster.redis, cluster.settings.pool)


async def plan(cluster: Cluster, folder: Path, *words: str, model: str = "small-model") -> Ended:
    files = [folder / "inv.toml", "--model", folder / model, "--profiles", folder]
    asked = ["--lengths", "1000,200", "--pool", cluster.settings.pool, "--write", *words]
    return await tokenyard(cluster.url, "plan", *map(str, files), *asked)


def found(*hosts: str) -> ClusterPlan:
    mix = [LengthClass.of(500, 100)]
    return search(machine_types([machine(host) for host in hosts], space(), estimator(), mix), mix).best


async def test_what_is_written_is_what_supervisors_take(cluster: Cluster, folder: Path) -> None:
    ended = await plan(cluster, folder)
    assert ended.code == 0, ended.err
    written = (await plans(cluster).read()).plan
    assert written is not None
    assert ended.err == (
        f"plan 1 of pool {cluster.settings.pool}: {len(written.workers)} workers on 5 hosts; "
        "their supervisors carry it out\n"
    )
    assert {worker.host for worker in written.workers} == {"big", "l4-1", "l4-2", "l4-3", "l4-4"}
    assert written.made > 1e9
    for host in ("big", "l4-3"):
        assert own_workers(written, host, [str(folder / "small-model")], 4)
    again = await plan(cluster, folder)
    assert again.err == f"plan 1 of pool {cluster.settings.pool} has these very workers: it stays\n"
    assert await plans(cluster).token() == "1"


async def test_a_plan_for_a_deadline_is_the_one_that_is_written(cluster: Cluster, folder: Path) -> None:
    before = await plans(cluster).write(BEFORE, await plans(cluster).read())
    assert before is not None
    ended = await plan(cluster, folder, "--jobs", "1000", "--deadline", "30d", "--json")
    assert ended.code == 0, ended.err
    assert "; it has nothing for old-host: what runs there stays as it is\n" in ended.err
    written = (await plans(cluster).read()).plan
    assert written is not None
    assert written.version == 2
    assert "big" not in {worker.host for worker in written.workers}  # eight times the price of the others
    assert "big" in written.idle_hosts


@pytest.mark.parametrize(
    ("was", "wrong", "said"),
    [
        ("kind", "knid", "machine.1.devices.1.knid: there is no such key; did you mean 'kind'?"),
        ("memory_gib = 16", "memory_gib = -1", "memory_gib"),
        ('"big"', '"the big one"', "'the big one-gpu0' is no worker's name"),
    ],
)
async def test_an_inventory_that_is_wrong_leaves_the_plan(
    cluster: Cluster, folder: Path, was: str, wrong: str, said: str
) -> None:
    (folder / "inv.toml").write_text(INVENTORY.replace(was, wrong, 1))
    await leaves_the_plan(cluster, plan(cluster, folder, "--json"), said)


async def test_profiles_of_another_model_leave_the_plan(cluster: Cluster, folder: Path) -> None:
    (folder / "small-model").rename(folder / "other")
    await leaves_the_plan(cluster, plan(cluster, folder, model="other"), "none of other: measure it with")


async def leaves_the_plan(cluster: Cluster, command: Awaitable[Ended], said: str) -> None:
    """The command says in one line what is wrong, and the pool's plan is the one of before."""
    before = await plans(cluster).write(BEFORE, await plans(cluster).read())
    ended = await command
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert (await plans(cluster).read()).plan == before


async def test_a_plan_that_was_written_meanwhile_stays(cluster: Cluster) -> None:
    pool = cluster.settings.pool
    over = await read_plan(cluster.redis, pool)
    meanwhile = await plans(cluster).write(BEFORE, over)
    with pytest.raises(PlanOverwrittenError, match=r"another plan of pool .* was written meanwhile: it stays"):
        await write_plan(cluster.redis, pool, found("h1"), over, MODEL, 0.9)
    assert (await plans(cluster).read()).plan == meanwhile


async def test_rubbish_in_its_place_is_replaced(cluster: Cluster) -> None:
    pool = cluster.settings.pool
    await cluster.redis.execute_command("HSET", cluster.keys.plan, "version", "7", "plan", "{")
    over = await read_plan(cluster.redis, pool)
    assert over.problem
    line = await write_plan(cluster.redis, pool, found("h1"), over, MODEL, 0.9)
    assert line.startswith(f"plan 8 of pool {pool}: ")
    assert (await plans(cluster).read()).plan is not None


async def test_hosts_that_are_to_run_nothing_and_hosts_that_nobody_watches_are_named(cluster: Cluster) -> None:
    pool, store = cluster.settings.pool, plans(cluster)
    whole = PoolPlan(1, 0.0, (PlannedWorker("a", "h1"), PlannedWorker("b", "h2")))
    idle = PoolPlan(2, 0.0, (PlannedWorker("c", "h3"),), idle_hosts=("h1",))
    assert await store.without_supervisor(["h1", "h2"]) == ["h2"]
    assert await store.without_supervisor([]) == []
    assert said(pool, idle, whole, ["h3"]).endswith(
        "; h1 will run nothing; it has nothing for h2: what runs there stays as it is; "
        "no supervisor on h3: nothing of it starts there before one does"
    )
    assert 0 < await cluster.redis.ttl(cluster.keys.host("h1")) <= HOST_TTL_S


async def test_no_more_than_three_hosts_are_named(cluster: Cluster) -> None:
    pool = cluster.settings.pool
    gone = tuple(PlannedWorker(f"w{n}", f"g{n}") for n in range(5))
    await plans(cluster).write(PoolPlan(1, 0.0, gone), await plans(cluster).read())
    line = await write_plan(cluster.redis, pool, found("h1"), await read_plan(cluster.redis, pool), MODEL, 0.9)
    assert line.endswith("; it has nothing for g0, g1, g2 and others: what runs there stays as it is")


def test_without_a_redis_nothing_is_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENYARD_REDIS_URL", raising=False)
    words = ["plan", str(folder / "inv.toml"), "--model", str(folder / "small-model"), "--lengths", "10,10"]
    result = CliRunner().invoke(app, [*words, "--write"])
    assert result.exit_code == 2
    assert "no Redis: set TOKENYARD_REDIS_URL" in result.stderr
    assert not result.stdout
