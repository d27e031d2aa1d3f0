"""The planner as an arq worker against a real server: on time, on demand, through rubbish and restarts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from cli_process import tokenyard
from cluster_fixtures import Cluster, cluster_of, eventually
from test_replanning import NOW, Menu, end_jobs, planner, plans
from test_rubbish import documented_to_live_for_ever

from broker.concurrency import cancel_all
from broker.errors import TokenyardError, UsageError
from planner.replanning import LookTerms
from planner.resizing import ResizeTerms
from planner.tasks import PlannerProcess, PlannerTasks, ask, cron_times
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.planner_process import measure_here


class Planners:
    """Planner processes of one pool, as tasks of the test."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.menu = Menu(a=100.0)
        self.measured: list[Sequence[str]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, terms: LookTerms = NOW, every_s: float = 1.0) -> asyncio.Task[None]:
        tasks = PlannerTasks(planner(self.cluster, self.menu, terms), self._measure)
        process = PlannerProcess(self.cluster.url, self.cluster.settings.pool, tasks, every_s)
        self._tasks.append(asyncio.ensure_future(process.run()))
        return self._tasks[-1]

    async def _measure(self, options: Sequence[str], host: str) -> str:
        if not options or host == "gone":
            raise UsageError("nothing to measure")
        self.measured.append(options)
        return f"measured on {host}" if host else "measured"

    async def ask(self, function: str, *arguments: object, timeout_s: float = 20.0) -> str:
        return await ask(self.cluster.redis, self.cluster.settings.pool, function, *arguments, timeout_s=timeout_s)

    async def version(self, least: int) -> None:
        """Wait for a plan of that version or a later one."""

        async def is_there() -> bool:
            plan = (await plans(self.cluster).read()).plan
            return plan is not None and plan.version >= least

        await eventually(is_there, f"plan {least} is written")

    async def close(self) -> None:
        await cancel_all(self._tasks)


@asynccontextmanager
async def planners_of(cluster: Cluster) -> AsyncGenerator[Planners]:
    """Planners of that pool, for the length of the block."""
    planners = Planners(cluster)
    try:
        yield planners
    finally:
        await planners.close()


@pytest.fixture
async def planners(redis_url: str, pool: str) -> AsyncGenerator[Planners]:
    async with cluster_of(redis_url, pool) as cluster, planners_of(cluster) as planners:
        yield planners


async def test_two_planners_plan_by_themselves_and_each_change_once(planners: Planners) -> None:
    for _ in range(2):
        planners.start()
    await end_jobs(planners.cluster)
    await planners.version(1)
    planners.menu.rates["b"] = 200.0
    await planners.version(2)
    looks = len(planners.menu.mixes)
    await eventually(lambda: len(planners.menu.mixes) >= looks + 3, "they look on")
    plan = (await plans(planners.cluster).read()).plan
    assert plan is not None
    assert plan.version == 2


async def test_asked_for(planners: Planners) -> None:
    slow = LookTerms(watch_s=0, resize=ResizeTerms())
    planners.start(slow, every_s=600)
    await end_jobs(planners.cluster)
    # The look at the start may have come just before.
    assert (await planners.ask("replan")).startswith(("plan 1: ", "plan 1 is the best"))
    assert await planners.ask("profile_device", ["--seats", "4"]) == "measured"
    assert planners.measured == [["--seats", "4"]]
    assert await planners.ask("profile_device", ["--seats", "4"], "far") == "measured on far"
    assert await planners.ask("profile_device", []) == "error: nothing to measure"


async def test_a_measurement_that_fails_is_all_that_was_done(planners: Planners) -> None:
    planners.start(LookTerms(watch_s=0, resize=ResizeTerms()), every_s=600)
    await end_jobs(planners.cluster)
    asked = ("replan", "--pool", planners.cluster.settings.pool)
    failed = await tokenyard(planners.cluster.url, *asked, "--measure", "--seats 4", "--host", "gone")
    assert (failed.code, failed.out) == (1, "error: nothing to measure\n")
    done = await tokenyard(planners.cluster.url, *asked, "--measure", "--seats 4", "--host", "far")
    assert done.code == 0, done.err
    assert done.out.startswith("measured on far\nplan 1")
    wrong = await tokenyard(planners.cluster.url, *asked, "--host", "far")
    assert wrong.code == 2
    assert "--host says where --measure is to measure" in wrong.err


async def test_what_cannot_be_asked(planners: Planners) -> None:
    planners.start(LookTerms(watch_s=0, resize=ResizeTerms()), every_s=600)
    with pytest.raises(TokenyardError, match="could not do that"):
        await planners.ask("no_such_thing")
    with pytest.raises(TokenyardError, match="could not do that"):
        await planners.ask("replan", "one", "too", "many")


async def test_nobody_answers(planners: Planners) -> None:
    with pytest.raises(TokenyardError, match="has not answered in 0 s: does `tokenyard planner` run"):
        await planners.ask("replan", timeout_s=0.01)


async def test_rubbish_in_its_queue_costs_that_job_and_not_the_planner(planners: Planners) -> None:
    redis: Any = planners.cluster.redis
    keys, pool = planners.cluster.keys, planners.cluster.settings.pool
    jobs = {f"{pool}-pickle": b"\x80\x04.", f"{pool}-list": b"[]"}
    jobs[f"{pool}-args"] = orjson.dumps({"f": "replan", "a": 5})
    for name, body in jobs.items():
        await redis.set(f"arq:job:{name}", body, ex=60)
    await redis.rpush(f"arq:job:{pool}-list-key", "x")
    await redis.expire(f"arq:job:{pool}-list-key", 60)
    for name in [*jobs, f"{pool}-list-key", f"{pool}-none", b"\xff"]:
        await redis.zadd(keys.arq, {name: 1})
    running = planners.start()
    await end_jobs(planners.cluster)
    await planners.version(1)

    await redis.delete(keys.arq)
    await redis.set(keys.arq, "not even a set")
    planners.menu.rates["b"] = 200.0
    await planners.version(2)
    assert not running.done()


async def test_what_it_keeps_is_json_and_does_not_stay(planners: Planners) -> None:
    running = planners.start()
    await end_jobs(planners.cluster)
    await planners.ask("replan")
    redis, keys = planners.cluster.redis, planners.cluster.keys
    [result] = [r for key in await redis.keys("arq:result:*") if (r := await redis.get(key)) and keys.arq.encode() in r]
    assert orjson.loads(result)["f"] == "replan"
    await cancel_all([running])
    found = [key.decode() async for key in redis.scan_iter(match=f"{keys.prefix}*", count=1000)]
    for_ever = documented_to_live_for_ever(keys.prefix)
    stay = [key for key in found if await redis.ttl(key) < 0 and not for_ever.fullmatch(key) and key != keys.arq]
    assert stay == []
    assert [key async for key in redis.scan_iter(match="arq:*", count=1000) if await redis.ttl(key) < 0] == []


async def test_redis_goes_and_comes_back(pool: str, tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "redis") as server, cluster_of(server.url, pool) as cluster:
        planners = Planners(cluster)
        running = planners.start()
        await end_jobs(cluster)
        await planners.version(1)
        await server.stop()
        await server.start()
        planners.menu.rates["b"] = 200.0
        await planners.version(2)
        assert (await planners.ask("replan")).startswith("plan 2 is the best")
        assert not running.done()
        await planners.close()


async def test_measuring_takes_no_option_that_a_plan_could_not_give(planners: Planners) -> None:
    settings = planners.cluster.settings.model_copy(update={"redis_url": None})
    for words in (["--url", "http://x"], ["--model", "theirs"], ["--engine-arg", "trust-remote-code=1"]):
        with pytest.raises(UsageError):
            await measure_here(settings, "ours")(words, "")


async def test_what_is_asked_of_another_host_is_said_and_not_measured_here(planners: Planners) -> None:
    settings = planners.cluster.settings.model_copy(update={"redis_url": None})
    with pytest.raises(UsageError) as error:
        await measure_here(settings, "our model")(["--seats", "4"], "gpu-7")
    said = str(error.value)
    assert f"`tokenyard profile --model 'our model' --seats 4 --pool {settings.pool}` on 'gpu-7'" in said
    assert f"this planner is on {socket.gethostname()}" in said
    with pytest.raises(UsageError, match=r"the model .theirs. is none"):
        await measure_here(settings, "ours")(["--model", "theirs"], "gpu-7")


def test_when_it_looks() -> None:
    assert cron_times(20) == {"second": {0, 20, 40}}
    assert cron_times(120) == {"minute": set(range(0, 60, 2)), "second": {0}}
    assert cron_times(1e9) == {"minute": {0}, "second": {0}}
