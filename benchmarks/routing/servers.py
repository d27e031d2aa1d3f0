"""The simulated OpenAI-compatible servers, each a process of its own, and what they hold at a moment."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import orjson

from benchmarks.cluster import BenchmarkError, Process, cpu_seconds
from benchmarks.routing.workload import MODEL
from broker.concurrency import cancel_all
from broker.throughput import Profile
from tokenyard.local_cluster import usable_cores
from workers.engines._vllm_metrics import read_metrics

_START_TIMEOUT_S = 60.0
_LOOK_S = 0.05
_SAMPLE_S = 0.25
_TIMEOUT = aiohttp.ClientTimeout(total=10)


class Program(Process):
    """Any program, under the guard that keeps a ``tokenyard`` process from outliving us."""

    def __init__(
        self, name: str, command: Sequence[str], *, log_dir: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(name, (), log_dir=log_dir, environment=environment or {})
        self._command[self._command.index(sys.executable) :] = command

    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Attributes:
        name: for people.
        url: its address.
        profile: what it simulates, before ``--speed``.
    """

    name: str
    url: str
    profile: Profile


@asynccontextmanager
async def running_servers(profiles: Mapping[str, Profile], speed: float, folder: Path) -> AsyncGenerator[list[Server]]:
    """Start a server for each profile, by name, and stop them at the end.

    Args:
        speed: how many times faster than the profiles they run.
        folder: for their profiles and logs.

    Raises:
        BenchmarkError: one does not start.
    """
    async with AsyncExitStack() as stack:
        programs: list[Program] = []
        for name, profile in profiles.items():
            file = folder / f"{name}.json"
            file.write_bytes(orjson.dumps(asdict(profile)))
            words = ["--port", "0", "--profile", str(file), "--model", MODEL, "--speed", str(speed)]
            program = Program(name, [sys.executable, "-m", "workers.engines.simulated_server", *words], log_dir=folder)
            await program.start()
            stack.push_async_callback(program.stop)
            programs.append(program)
        urls = [await until_said(program, _listening_at) for program in programs]
        yield [Server(name, url, profiles[name]) for name, url in zip(profiles, urls, strict=True)]


def _listening_at(log: str) -> str | None:
    for line in log.splitlines():
        if line.startswith("listening on "):
            return line.removeprefix("listening on ")
    return None


async def until_said(program: Program, find: Callable[[str], str | None]) -> str:
    """Wait until ``find`` finds something in what a program writes.

    Raises:
        BenchmarkError: the program ended, or said nothing for too long.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _START_TIMEOUT_S
    while (found := find(program.log())) is None:
        if program.ended or loop.time() > end:
            why = program.how_it_ended() if program.ended else f"it is not ready after {_START_TIMEOUT_S:.0f} s"
            raise BenchmarkError(f"{program.name} did not start: {why}")
        await asyncio.sleep(_LOOK_S)
    return found


def _cpu_seconds() -> float:
    """CPU time so far of this process and all that it started and that still run."""
    return cpu_seconds(os.getpid(), and_children=True)


class Watch:
    """The clock of one run; while it goes, a look at what the servers hold together.

    Attributes:
        seconds: what ``async with watch`` took.
        most_in_flight: most requests that all servers together had at one look, running or queued there.
        cpu_percent: CPU time of this benchmark and all its processes, in percent of what all cores have.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self.seconds = 0.0
        self.most_in_flight = 0
        self.cpu_percent = 0.0

    async def __aenter__(self) -> Watch:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        self._task = asyncio.ensure_future(self._look())
        self._cpu_before = _cpu_seconds()
        self._begin = time.perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        cores = len(usable_cores())
        self.cpu_percent = (_cpu_seconds() - self._cpu_before) / self.seconds / cores * 100
        await cancel_all([self._task])
        await self._session.close()

    async def _look(self) -> None:
        while True:
            held = await asyncio.gather(*(self._held(server) for server in self._servers))
            self.most_in_flight = max(self.most_in_flight, sum(held))
            await asyncio.sleep(_SAMPLE_S)

    async def _held(self, server: Server) -> int:
        async with self._session.get(f"{server.url}/metrics") as response:
            metrics = read_metrics(await response.text())
        return metrics.running + metrics.waiting if metrics else 0
