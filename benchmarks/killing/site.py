"""A host whose supervisor and planner are kept alive as a service manager does it, and what runs on it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.cluster import POOL, BenchCluster, BenchmarkError
from benchmarks.killing.planner import HOST, MIX_S, MODEL, Menu
from benchmarks.waiting import until_true
from broker.concurrency import cancel_all
from broker.pool_plan import PoolPlan
from broker.recent_mix import MixClass, RecentMix
from broker.store.plans import PlanStore
from broker.store.scheduler import SchedulerStore
from tokenyard.supervision import process_name

#: The planner looks this often; the pool must be as planned after this long (seconds).
_EVERY_S, _PATIENCE_S = 2.0, 60.0
#: What has not left so long after supervisor and planner were ended stays (seconds).
_LEAVING_S = 10.0
_POLL_S = 0.05
_NOTE_EVERY_S = MIX_S / 5
#: A job of each mix: prompt and output tokens.
_SHORT, _LONG = (100, 100), (1000, 1000)
_JOBS = 100
_TTL_S = 60


@dataclass
class Site:
    """One host of a pool, all of it from one folder."""

    cluster: BenchCluster
    folder: Path
    long: bool = False
    pids: dict[str, int] = field(default_factory=dict[str, int])
    _tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    async def start(self) -> None:
        """Start supervisor and planner, and wait until the pool is as planned."""
        words = ("--pool", POOL, "--host", HOST, "--model", MODEL, "--min-workers", "9", "--max-workers", "9")
        commands = {
            "supervisor": ("tokenyard", "supervisor", *words),
            "planner": ("benchmarks.killing.planner", self.cluster.redis_url, POOL, str(_EVERY_S)),
        }
        self._tasks = [asyncio.ensure_future(self._keep(*command)) for command in commands.items()]
        self._tasks.append(asyncio.ensure_future(self._note_mix()))
        await self.until(self.as_planned, "the pool was not as planned")

    async def close(self) -> int:
        """End all; returns how many processes are left some seconds later, which are ended then."""
        await cancel_all(self._tasks)
        left = self._ours()
        for _ in range(round(_LEAVING_S / _POLL_S)):
            if not left:
                break
            await asyncio.sleep(_POLL_S)
            left = self._ours()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(left)

    async def until(self, condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        """Wait until ``condition`` holds.

        Raises:
            BenchmarkError: it does not.
        """

        async def holds() -> bool:
            if await condition():
                return True
            self.cluster.check()
            for task in self._tasks:
                if task.done():
                    task.result()
            return False

        try:
            await until_true(holds, _PATIENCE_S, _POLL_S)
        except TimeoutError:
            raise BenchmarkError(f"{otherwise} within {_PATIENCE_S:.0f} s: {self.folder}") from None

    async def as_planned(self) -> bool:
        """Whether the plan is the one for the mix, and its workers are ready and just they run."""
        plan = await self.plan()
        if plan is None or plan.workers != Menu().propose(self._mix, []).workers:
            return False
        names = sorted(process_name(worker) for worker in plan.workers)
        beats = await self.cluster.monitor.heartbeats()
        ready = sorted(name for name, beat in beats.items() if beat is not None and beat.state == "ready")
        return ready == names and sorted(self.workers().values()) == names

    async def plan(self) -> PoolPlan | None:
        """The pool's plan."""
        return (await PlanStore(self.cluster.client.redis, POOL).read()).plan

    def workers(self) -> Mapping[int, str]:
        """Worker processes of this host by process id, each with its worker's name."""
        return {p.pid: _word_after("--name", p) for p in self._ours() if _command(p)[2:4] == ["tokenyard", "worker"]}

    @property
    def _mix(self) -> RecentMix:
        prompt, output = _LONG if self.long else _SHORT
        return RecentMix((MixClass(_JOBS, _JOBS * prompt, _JOBS * output),))

    def _ours(self) -> list[psutil.Process]:
        """Everything that was started from this folder and runs."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("TOKENYARD_STATE_DIR") == str(self.folder)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    async def _keep(self, name: str, command: Sequence[str]) -> None:
        """Run a program, and again at once when it has ended."""
        environment = {
            **os.environ,
            "TOKENYARD_REDIS_URL": self.cluster.redis_url,
            "TOKENYARD_STATE_DIR": str(self.folder),
            "NO_COLOR": "1",
        }
        while True:
            with (self.folder / f"{name}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", *command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            self.pids[name] = process.pid
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()

    async def _note_mix(self) -> None:
        """What the scheduler notes of jobs that end, again and again."""
        store = SchedulerStore(self.cluster.client.redis, POOL, "bench", lease_ttl_s=9, result_ttl_s=_TTL_S)
        while True:
            prompt, output = _LONG if self.long else _SHORT
            await store.note_ended(f"{_JOBS}:{_JOBS * prompt}:{_JOBS * output}")
            await asyncio.sleep(_NOTE_EVERY_S)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _word_after(option: str, process: psutil.Process) -> str:
    words = _command(process)
    return words[words.index(option) + 1] if option in words[:-1] else ""
