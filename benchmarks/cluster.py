"""A cluster for one benchmark: server, scheduler and workers, each a process of its own, in a temporary folder."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.waiting import until_true
from broker.client import Client, connect_client
from broker.errors import TokenyardError
from broker.store.monitor import MonitorStore
from tokenyard.child_process import ChildProcess
from tokenyard.embedded_server import EmbeddedServer

POOL = "bench"
#: Words for ``tokenyard worker``: an engine that takes no time.
INSTANT_ENGINE = ("--engine", "simulated")

_POLL_S = 0.02


class BenchmarkError(TokenyardError):
    """A benchmark cannot go on; the message says why."""


class Process(ChildProcess):
    """A ``tokenyard`` process whose CPU time and memory are measured."""

    @property
    def pid(self) -> int:
        """Its process id: the shell that starts it becomes it."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process is not None and self._process.returncode is not None


class ProcessGroup:
    """Scheduler and workers of one pool, each a process, and the server that they share."""

    def __init__(self, server: EmbeddedServer, client: Client, pool: str) -> None:
        self.client = client
        self.server = server
        self.monitor = MonitorStore(client.redis, pool)
        self.scheduler: Process | None = None
        self.workers: list[Process] = []

    async def until(self, condition: Callable[[], Awaitable[bool]], otherwise: str, timeout_s: float) -> None:
        """Wait until ``condition`` holds.

        Raises:
            BenchmarkError: a process ended, or ``timeout_s`` seconds went by: then the message is ``otherwise``.
        """

        async def holds() -> bool:
            if await condition():
                return True
            self.check()
            return False

        try:
            await until_true(holds, timeout_s, _POLL_S)
        except TimeoutError:
            raise BenchmarkError(f"{otherwise} within {timeout_s:.0f} s") from None

    def check(self) -> None:
        """See that all processes run.

        Raises:
            BenchmarkError: one ended.
        """
        for child in self._children():
            if child.ended:
                raise BenchmarkError(f"{child.name} ended: {child.how_it_ended()}")

    def _children(self) -> list[Process]:
        return [*self.workers, *([self.scheduler] if self.scheduler else [])]

    async def is_led(self) -> bool:
        """Whether a scheduler has the lease."""
        return await self.monitor.lease_owner() is not None

    async def are_ready(self) -> bool:
        """Whether all workers are."""
        beats = await self.monitor.heartbeats()
        ready = {name for name, beat in beats.items() if beat is not None and beat.state == "ready"}
        return ready >= {worker.name for worker in self.workers}


class BenchCluster(ProcessGroup):
    """The processes of one cluster; see ``bench_cluster``."""

    def __init__(self, folder: Path, server: EmbeddedServer, client: Client, model: str) -> None:
        super().__init__(server, client, POOL)
        self.redis_url = server.url
        self._folder = folder
        self._model = model

    async def start_scheduler(self) -> Process:
        """Start the scheduler and wait until it leads."""
        self.scheduler = await self.start_process("scheduler", "scheduler", "--pool", POOL)
        await self.until(self.is_led, "the scheduler did not take the lease", 60)
        return self.scheduler

    async def start_workers(self, count: int, options: Sequence[str], *, timeout_s: float = 60) -> None:
        """Start workers that ``options`` describe to ``tokenyard worker``, and wait until all are ready."""
        for number in range(count):
            name = f"worker-{number + 1}"
            words = ["worker", "--pool", POOL, "--model", self._model, "--name", name, *options]
            self.workers.append(await self.start_process(name, *words))
        await self.until(self.are_ready, "the workers did not become ready", timeout_s)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time used so far, by role: client (this process), server, scheduler, workers (with their children)."""
        seconds = {"client": cpu_seconds(psutil.Process().pid)}
        if self.server.pid is not None:
            seconds["server"] = cpu_seconds(self.server.pid)
        if self.scheduler is not None:
            seconds["scheduler"] = cpu_seconds(self.scheduler.pid)
        seconds["workers"] = sum(cpu_seconds(worker.pid, and_children=True) for worker in self.workers)
        return seconds

    async def stop(self) -> None:
        """End scheduler and workers."""
        await asyncio.gather(*(child.stop() for child in self._children()))

    async def start_process(self, name: str, *words: str) -> Process:
        """Start a ``tokenyard`` process of this cluster; it is the caller's to keep."""
        environment = {"TOKENYARD_REDIS_URL": self.redis_url, "TOKENYARD_POOL": POOL, "NO_COLOR": "1"}
        child = Process(name, words, log_dir=self._folder, environment=environment)
        await child.start()
        return child


@asynccontextmanager
async def bench_cluster(
    model: str = "simulated", names: Sequence[str] = ("simulated",)
) -> AsyncGenerator[BenchCluster]:
    """A server with a client and a pool that serves ``model``; scheduler and workers are started by its methods.

    Args:
        model: what workers are told to load.
        names: what requests call it.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenyard-bench-")))
        server = await stack.enter_async_context(EmbeddedServer(folder / "redis"))
        client = await stack.enter_async_context(connect_client(server.url))
        await client.registry.add_pool(POOL, names)
        cluster = BenchCluster(folder, server, client, model)
        stack.push_async_callback(cluster.stop)
        yield cluster


def peak_memory_bytes(pid: int) -> int:
    """The most memory a process ever held (peak resident set size).

    Raises:
        BenchmarkError: this system does not tell (only Linux does).
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise BenchmarkError("peak memory can be read on Linux only: leave it out with --waiting 0") from None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def cpu_seconds(pid: int, *, and_children: bool = False) -> float:
    """CPU time that a process has used so far, in seconds."""
    process = psutil.Process(pid)
    family = [process, *(process.children(recursive=True) if and_children else [])]
    return sum(times.user + times.system for times in (p.cpu_times() for p in family))
