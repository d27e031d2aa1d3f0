"""Every command of docs/monitoring.md, in their order, against a live cluster."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pytest
from child_processes import start_process
from cli_process import ROOT, environment, in_process
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually

from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.dead import DeadLetterStore
from broker.store.plans import PlanStore

PAGE = ROOT / "docs" / "monitoring.md"


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the page and the output it shows."""

    words: str
    shown: str


def commands() -> list[Command]:
    """All commands, in their order."""
    found: list[Command] = []
    for block in PAGE.read_text().split("```console\n")[1:]:
        for part in ("\n" + block.partition("```")[0]).split("\n$ ")[1:]:
            words, _, shown = part.partition("\n")
            found.append(Command(words, shown.strip()))
    return found


@dataclass(frozen=True, slots=True)
class Operated:
    """A cluster that has something of everything, and how the page's names are to be read there."""

    cluster: Cluster
    names: dict[str, str]

    def words(self, command: Command) -> list[str]:
        text = command.words
        for name, value in self.names.items():
            text = text.replace(name, value)
        words = shlex.split(text)
        if words[0] == "redis-cli":
            socket = unquote(urlsplit(self.cluster.url).path)
            return ["redis-cli", "-s", socket, "--no-raw", *words[1:]]
        return words


@asynccontextmanager
async def operated(url: str, pool: str) -> AsyncGenerator[Operated]:
    """A device with four seats; of twelve jobs one is done, one failed, one is to be tried again, the rest is there."""
    async with cluster_of(url, pool, retry_first_s=300.0) as cluster:
        engine = ManualEngine(seats=4)
        await cluster.join("gpu-0", engine)
        cluster.schedule("scheduler-1")
        batch = await cluster.submit(12)
        for ended, status_code in enumerate((200, 400, 500), 1):
            await eventually(lambda: len(engine.running) >= 4)
            engine.finish(1, status_code)
            await eventually(lambda ended=ended: len(engine.started) >= 4 + ended)
        plans, letters = PlanStore(cluster.redis, pool), DeadLetterStore(cluster.redis, pool)
        planned = PlannedWorker("gpu-0", "host-1", ("--engine", "vllm"), "L40S", (0,), tokens_per_s=2400.0)
        await plans.write(PoolPlan(1, 0.0, (planned,), tokens_per_s=2400.0), await plans.read())
        await plans.mark_hosts(["host-1"])

        async def all_there() -> bool:
            dead, delayed = await letters.count(), await cluster.monitor.delayed()
            return bool(dead and delayed and await cluster.waiting())

        await eventually(all_there)
        [(_, newest)] = await cluster.redis.xrevrange(cluster.keys.device("gpu-0"), count=1)
        names = {
            "{llama}": f"{{{pool}}}",
            "--pool llama": f"--pool {pool}",
            "BATCH": batch,
            "JOB": newest[b"job"].decode(),
            "DEAD": (await letters.ids())[0],
        }
        yield Operated(cluster, names)


async def run(words: list[str], url: str) -> tuple[int, str]:
    """Exit code and output."""
    if words[0] == "tokenyard":
        ended = await in_process(url, *words[1:])
        return ended.code, (ended.err + ended.out).strip()
    process = await start_process(
        *words, cwd=ROOT, env=environment(url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode().strip()


def is_empty(output: str) -> bool:
    """Whether redis-cli found nothing: no value, or a list of nothing but that."""
    return all(line.strip().endswith(("(nil)", "(empty array)")) for line in output.splitlines())


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
async def test_every_command_says_what_the_page_says(redis_url: str, pool: str) -> None:
    found = commands()
    assert len(found) > 25
    async with operated(redis_url, pool) as site:
        for command in found:
            code, output = await run(site.words(command), redis_url)
            assert code == 0, (command.words, output)
            assert not output.startswith(("(error)", "ERR", "WRONGTYPE")), (command.words, output)
            assert command.shown, f"the page shows no output of {command.words}"
            assert is_empty(output) == is_empty(command.shown), (command.words, output)
            if command.words.endswith("order pause"):
                await site.cluster.in_state("gpu-0", "paused")
            if command.words.endswith("order resume"):
                await site.cluster.in_state("gpu-0", "ready")
        monitor = site.cluster.monitor

        async def drains_or_left() -> bool:
            beat = (await monitor.heartbeats()).get("gpu-0")
            return beat is None or beat.state == "draining"

        await eventually(drains_or_left)
