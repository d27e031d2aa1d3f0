"""status and top, on a terminal and off."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from child_processes import start_process
from cli_process import ROOT, environment, in_process, tokenyard
from cluster_fixtures import PATIENCE_S, Cluster, ManualEngine, cluster_of, eventually

from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.plans import PlanStore
from tokenyard.cluster_snapshot import read_cluster
from tokenyard.embedded_server import EmbeddedServer


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as cluster:
        yield cluster


async def running_batch(cluster: Cluster, engine: ManualEngine) -> str:
    """A batch with one job done, one failed, and one that runs."""
    cluster.schedule("the-owner")
    await cluster.leading("the-owner")
    await cluster.join("w", engine)
    batch = await cluster.submit(3)
    await eventually(lambda: len(engine.running) == 3, "3 jobs run")
    engine.finish(1)
    await eventually(lambda: len(engine.running) == 2, "2 jobs run")
    engine.finish(1, status_code=400)

    async def two_ended() -> bool:
        return (await cluster.client.counts(batch)).ended == 2

    await eventually(two_ended, "2 jobs ended")
    return batch


async def test_status_for_machines(cluster: Cluster) -> None:
    batch = await running_batch(cluster, ManualEngine())
    shown = await tokenyard(cluster.url, "status", "--json")
    assert (shown.code, shown.err) == (0, "")
    status = json.loads(shown.out)
    pool = next(pool for pool in status["pools"] if pool["name"] == cluster.settings.pool)
    assert (pool["models"], pool["scheduler"]) == ([cluster.model], "the-owner")
    assert pool["waiting"] == {"returned": 0, "high": 0, "normal": 0, "low": 0}
    [worker] = pool["workers"]
    assert (worker["name"], worker["state"], worker["seats"], worker["device"]) == ("w", "ready", 4, "test device")
    found = next(entry for entry in status["batches"] if entry["id"] == batch)
    assert found == {
        "id": batch,
        "state": "running",
        "total": 3,
        "done": 1,
        "failed": 1,
        "cancelled": 0,
        "prompt_tokens": 20,
        "output_tokens": 10,
        "sealed": True,
        "complete": False,
    }


async def test_status_for_people(cluster: Cluster) -> None:
    batch = await running_batch(cluster, ManualEngine())
    shown = await tokenyard(cluster.url, "status")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    at = lines.index(f"pool {cluster.settings.pool}: {cluster.model}")
    assert lines[at + 1 : at + 3] == ["scheduler: the-owner", "waiting jobs: none; 1 dead letter"]
    assert lines[at + 5].split()[:2] == ["w", "ready"]
    assert [line.split() for line in lines if line.startswith(batch)] == [[batch, "running", "3", "1", "1", "0"]]


async def test_status_says_that_nobody_schedules(cluster: Cluster) -> None:
    await cluster.register_model()
    batch = await cluster.submit(2)
    shown = await tokenyard(cluster.url, "status")
    lines = shown.out.splitlines()
    at = lines.index(f"pool {cluster.settings.pool}: {cluster.model}")
    assert lines[at + 1 : at + 4] == [
        "scheduler: none: start `tokenyard scheduler`",
        "waiting jobs: 2 normal",
        "no workers",
    ]
    await cluster.client.cancel(batch)


async def test_it_shows_queues_shares_and_the_plan(cluster: Cluster) -> None:
    batch = await running_batch(cluster, ManualEngine())

    async def one_runs() -> bool:
        beat = (await cluster.monitor.heartbeats())["w"]
        return beat is not None and beat.running == 1

    await eventually(one_runs)
    plans = PlanStore(cluster.redis, cluster.settings.pool)
    workers = tuple(PlannedWorker(name, "host-1") for name in ("w", "x"))
    await plans.write(PoolPlan(1, 0.0, workers, tokens_per_s=1234.0), await plans.read())
    shown = await in_process(cluster.url, "top", "--once")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    at = lines.index(f"pool {cluster.settings.pool}: {cluster.model}")
    assert "plan 1: 2 workers on 1 host, 1,234 tokens/s expected; not there: x" in lines[at : at + 6]
    head = next(n for n in range(at, len(lines)) if lines[n].startswith("device"))
    assert lines[head].split() == ["device", "state", "tokens/s", "share", "running", "queue", "KV", "used", "jobs"]
    assert re.search(r" 1/4 +1 ", lines[head + 2])  # one of three jobs has not ended
    status = json.loads((await in_process(cluster.url, "status", "--json")).out)
    pool = next(pool for pool in status["pools"] if pool["name"] == cluster.settings.pool)
    assert (pool["workers"][0]["queue"], pool["plan"]["version"]) == (1, 1)
    await cluster.client.cancel(batch)


async def test_devices_keep_their_rows(cluster: Cluster) -> None:
    """Redis has them by their last heartbeat, which changes all the time."""
    for name in ("b", "c", "a"):
        await cluster.puppet(name)
    snapshot = await read_cluster(cluster.client, [])
    [pool] = [pool for pool in snapshot.pools if pool.name == cluster.settings.pool]
    assert list(pool.workers) == ["a", "b", "c"]


async def test_top_off_a_terminal_prints_once(cluster: Cluster) -> None:
    await cluster.register_model()
    shown = await tokenyard(cluster.url, "top")
    assert shown.code == 0
    assert f"pool {cluster.settings.pool}: {cluster.model}" in shown.out.splitlines()
    assert "\x1b" not in shown.out


@dataclass(slots=True)
class Screen:
    """A command on a terminal of its own."""

    process: asyncio.subprocess.Process
    keyboard: int
    _seen: bytearray = field(default_factory=bytearray)

    def read(self) -> None:
        try:
            self._seen += os.read(self.keyboard, 65536)
        except OSError:  # the other end is closed
            asyncio.get_running_loop().remove_reader(self.keyboard)

    async def shows(self, text: str) -> None:
        await eventually(
            lambda: text in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen.decode(errors="replace")), text
        )

    def forget(self) -> None:
        self._seen.clear()

    async def code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@contextmanager
def terminal(rows: int, columns: int) -> Generator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)


@pytest.fixture
async def top(redis_server: EmbeddedServer) -> AsyncGenerator[Screen]:
    """``tokenyard top`` on a terminal of 80 columns."""
    with terminal(24, 80) as (ours, theirs):
        process = await start_process(
            *(sys.executable, "-m", "tokenyard", "top"),
            cwd=ROOT,
            env={name: value for name, value in environment(redis_server.url).items() if name != "COLUMNS"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        screen = Screen(process, ours)
        asyncio.get_running_loop().add_reader(ours, screen.read)
        yield screen
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[EmbeddedServer]:
    """A server of this test's own: nothing else is on it, and it can be stopped."""
    async with EmbeddedServer(tmp_path_factory.mktemp("own")) as server:
        yield server


async def test_top_follows_the_cluster_until_q(redis_server: EmbeddedServer, top: Screen, pool: str) -> None:
    await top.shows("no pools yet")
    async with cluster_of(redis_server.url, pool) as cluster:
        engine = ManualEngine()
        await running_batch(cluster, engine)
        await top.shows(f"pool {pool}: {cluster.model}")
        await top.shows("1/4")
    os.write(top.keyboard, b"xq")
    assert await top.code() == 0


async def test_top_leaves_on_ctrl_c(top: Screen) -> None:
    await top.shows("no batches")
    top.process.send_signal(signal.SIGINT)
    assert await top.code() == 0


async def test_top_waits_for_a_server_that_comes_back(redis_server: EmbeddedServer, top: Screen) -> None:
    await top.shows("no batches")
    await redis_server.stop()
    await top.shows("lost Redis")
    top.forget()
    await redis_server.start()
    await top.shows("no batches")
    os.write(top.keyboard, b"q")
    assert await top.code() == 0
