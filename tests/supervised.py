"""``tokenyard supervisor`` as a process over a pool of simulated workers, and what runs because of it."""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from child_processes import start_process
from cli_process import ROOT, environment
from cluster_fixtures import PATIENCE_S, Cluster, cluster_of, eventually

from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.plans import PlanStore
from tokenyard.supervision import process_name

HOST = "here"
_MARK = "TEST_SUPERVISED"
SIMULATED = ("--engine", "simulated")


def planned(
    name: str, *options: str, host: str = HOST, rate: float = 1000.0, devices: tuple[int, ...] = ()
) -> PlannedWorker:
    """A simulated worker."""
    return PlannedWorker(name, host, (*SIMULATED, *options), tokens_per_s=rate, devices=devices)


@dataclass
class Site:
    """One host, with its supervisors and their workers."""

    cluster: Cluster
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[asyncio.subprocess.Process] = field(default_factory=list[asyncio.subprocess.Process])

    @property
    def plans(self) -> PlanStore:
        """Where the pool's plan is."""
        return PlanStore(self.cluster.redis, self.cluster.settings.pool)

    @property
    def said(self) -> str:
        """The log of all supervisors so far."""
        return (self.folder / "supervisor.log").read_text()

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a supervisor that scales to its plan without delay, or as these words say."""
        pool = self.cluster.settings.pool
        scale = words or ("--min-workers", "9", "--max-workers", "9")
        with (self.folder / "supervisor.log").open("ab") as log:
            process = await start_process(
                *(sys.executable, "-m", "tokenyard", "supervisor", "--pool", pool, "--host", HOST),
                *("--model", self.cluster.model, *scale),
                cwd=ROOT,
                env=environment(self.cluster.url) | {"TOKENYARD_STATE_DIR": str(self.folder), _MARK: self.mark},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    async def write(self, *workers: PlannedWorker, least: int = 0, idle: tuple[str, ...] = ()) -> PoolPlan:
        """Write a plan, as the planner does."""
        new = PoolPlan(1, 0.0, workers, min_workers=least, idle_hosts=idle)
        plan = await self.plans.write(new, await self.plans.read())
        assert plan is not None
        return plan

    async def ready(self) -> set[str]:
        """Names of the pool's workers that are ready."""
        beats = await self.cluster.monitor.heartbeats()
        return {name for name, beat in beats.items() if beat is not None and beat.state == "ready"}

    async def settled(self, *workers: PlannedWorker) -> None:
        """Wait until exactly these run, as the pool and as the host sees it."""
        names = {process_name(worker) for worker in workers}

        async def is_so() -> bool:
            return await self.ready() == names and sorted(self.running()) == sorted(names)

        await eventually(is_so, f"just {sorted(names)} run; {self.said[-2000:]}")

    def running(self) -> list[str]:
        """Names of the worker processes of this host, one for each process."""
        return [name for name, _ in self._workers()]

    def worker_pids(self) -> set[int]:
        """Their process ids."""
        return {process.pid for _, process in self._workers()}

    def _workers(self) -> list[tuple[str, psutil.Process]]:
        """Worker processes with their names. One that ends meanwhile has no command any more, or is not there."""
        found: list[tuple[str, psutil.Process]] = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if "worker" in words[:4]:
                    found.append((words[words.index("--name") + 1], process))
        return found

    def processes(self) -> list[psutil.Process]:
        """All processes of this host, but for the shells that watch over workers."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                ours = command and command[0] not in ("sh", "/bin/sh", "sleep")
                if ours and process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """``kill -9`` the worker of that process name."""
        [process] = [process for running, process in self._workers() if running == name]
        process.kill()

    async def says(self, text: str) -> None:
        """Wait until a supervisor has said this."""
        await eventually(lambda: text in self.said, f"it says {text!r}: {self.said[-2000:]}")

    async def stop(self, process: asyncio.subprocess.Process) -> None:
        """Stop a supervisor, which drains its workers."""
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
        assert process.returncode == 0, self.said[-2000:]
        await eventually(lambda: not self.processes(), "nothing is left")
        assert "Traceback" not in self.said

    def clear(self) -> None:
        """Kill what a failed test left."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@asynccontextmanager
async def site_of(redis_url: str, pool: str, folder: Path) -> AsyncGenerator[Site]:
    """A host without supervisors yet; what runs there at the end is ended."""
    async with cluster_of(redis_url, pool) as cluster:
        site = Site(cluster, folder)
        try:
            yield site
        finally:
            site.clear()
