"""A whole cluster on one machine: server, scheduler and workers as processes of their own."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.concurrency import cancel_all, run_together
from broker.errors import TokenyardError, UsageError
from broker.heartbeat import Heartbeat
from broker.settings import Settings
from tokenyard.child_process import ChildProcess
from tokenyard.embedded_server import EmbeddedServer

#: A worker that has nothing to finish, or nobody to tell, is killed this long after it was asked twice (seconds).
_SHORT_STOP_S = 1.0
#: The embedded server is looked at this often (seconds).
_LOOK_S = 1.0
#: A worker's name is its log's, too, beside the scheduler's.
_NAME = re.compile(r"(?!scheduler$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ClusterFailedError(TokenyardError):
    """No worker is left, or the scheduler or the server ended."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; once that is mended, the same command goes on with what is left")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker to start.

    Attributes:
        name: its name in the pool.
        options: words for ``tokenyard worker``.
    """

    name: str
    options: tuple[str, ...]


def demo_workers(cores: Sequence[int], dtype: str) -> list[WorkerSpec]:
    """Two vLLM workers of unequal capacity, a core each: precision, seats and KV space differ.

    Args:
        cores: that may be used.
        dtype: that they compute fastest. Where it is float32, the slow worker has that too, and fewer seats.
    """
    first, second = cores[0], cores[-1]
    fewer = 4 if dtype == "float32" else 8
    fast = f"--dtype {dtype} --seats 32 --kv-gib 0.5 --context 2048 --eager --cores {first}"
    slow = f"--dtype float32 --seats {fewer} --kv-gib 0.25 --context 2048 --eager --cores {second}"
    return [WorkerSpec("fast", tuple(fast.split())), WorkerSpec("slow", tuple(slow.split()))]


def parse_worker(text: str, number: int) -> WorkerSpec:
    """A worker as a person writes it: ``NAME: OPTIONS`` or just options of ``tokenyard worker``.

    Raises:
        UsageError: the quotes do not match, or the name cannot be one.
    """
    name, colon, rest = text.partition(":")
    if not colon or " " in name.strip() or name.startswith("-"):
        name, rest = f"worker-{number}", text
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise UsageError(f"--worker {text!r}: name it with letters, digits, '.', '_' and '-', not 'scheduler'")
    try:
        return WorkerSpec(name, tuple(shlex.split(rest)))
    except ValueError as e:
        raise UsageError(f"--worker {text!r}: {e}") from None


class LocalCluster:
    """Start, watch, drain and stop the processes of one machine. An async context manager."""

    def __init__(
        self, settings: Settings, model: str, workers: Sequence[WorkerSpec], report: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._model = model
        self._specs = list(workers)
        self._report = report
        self._server: EmbeddedServer | None = None
        self._scheduler: ChildProcess | None = None
        self._workers: list[ChildProcess] = []
        self._have_started: set[str] = set()
        self._hurry = asyncio.Event()
        self.redis_url = settings.redis_url.get_secret_value() if settings.redis_url else ""

    async def __aenter__(self) -> LocalCluster:
        if not self.redis_url:
            self._server = EmbeddedServer(self._settings.state_dir / "redis")
            await self._server.start()
            self.redis_url = self._server.url
            self._report(f"embedded server: {self._server.redis_cli_hint}")
        return self

    async def __aexit__(self, *_error: object) -> None:
        ends = [self._stop(worker) for worker in self._workers]
        if self._scheduler is not None:
            ends.append(self._scheduler.stop())
        await asyncio.gather(*ends)
        if self._server is not None:
            await self._server.stop()

    async def start(self) -> None:
        """Start scheduler and workers; they get ready on their own."""
        environment = {
            "TOKENYARD_REDIS_URL": self.redis_url,
            "TOKENYARD_POOL": self._settings.pool,
            "TOKENYARD_POLICY": self._settings.policy,
            "TOKENYARD_HEARTBEAT_INTERVAL_S": str(self._settings.heartbeat_interval_s),
            "NO_COLOR": "1",
            "TYPER_USE_RICH": "0",  # what is wrong with an option on a line of its own, without a box around it
        }
        logs = self._log_dir()
        self._scheduler = ChildProcess(
            "scheduler", ["scheduler", "--pool", self._settings.pool], log_dir=logs, environment=environment
        )
        await self._scheduler.start()
        for spec in self._specs:
            arguments = ["worker", "--model", self._model, "--name", spec.name, *spec.options]
            child = ChildProcess(spec.name, arguments, log_dir=logs, environment=environment)
            await child.start()
            self._workers.append(child)
        self._report(f"logs: {logs}/")

    def saw(self, heartbeats: Mapping[str, Heartbeat | None]) -> None:
        """Learn which workers have been ready: they may have jobs to finish."""
        for worker in self._workers:
            beat = heartbeats.get(worker.name)
            # An earlier process of that name may have left a heartbeat.
            if beat is not None and beat.pid == worker.pid and beat.state != "starting":
                self._have_started.add(worker.name)

    async def watch(self) -> None:
        """Report workers that end; return never while one is left.

        Raises:
            ClusterFailedError: the scheduler or the embedded server ended, or no worker is left.
        """
        assert self._scheduler is not None, "start() comes first"
        await run_together(self._watch_scheduler(self._scheduler), self._watch_server(), self._watch_workers())

    async def _watch_workers(self) -> None:
        waits = {asyncio.ensure_future(worker.wait()): worker for worker in self._workers}
        try:
            while True:
                ended, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    worker = waits.pop(task)
                    message = f"worker {worker.name} ended: {worker.how_it_ended()}"
                    if not waits:
                        raise ClusterFailedError(message)
                    self._report(f"{message}; going on with {', '.join(w.name for w in waits.values())}")
        finally:
            await cancel_all(list(waits))

    async def _watch_scheduler(self, scheduler: ChildProcess) -> None:
        await scheduler.wait()
        raise ClusterFailedError(f"the scheduler ended: {scheduler.how_it_ended()}")

    async def _watch_server(self) -> None:
        if self._server is None:
            await asyncio.Event().wait()  # somebody else's: whoever talks to it sees it go, and come back
        else:
            while self._server.pid is not None:  # noqa: ASYNC110  a process that asyncio did not start
                await asyncio.sleep(_LOOK_S)
            raise ClusterFailedError(f"the embedded server ended (log: {self._server.log_path})")

    async def drain(self) -> None:
        """Let the workers finish what runs and hand back the rest."""
        await asyncio.gather(*(self._drain(worker) for worker in self._workers))

    def stop_now(self) -> None:
        """The second word: running jobs are handed back, too."""
        self._hurry.set()

    async def _drain(self, worker: ChildProcess) -> None:
        if worker.name in self._have_started:
            worker.terminate()
            await run_together(worker.wait(), self._hurry.wait())
        await self._stop(worker)

    async def _stop(self, worker: ChildProcess) -> None:
        """Make it end. One that is still starting has nothing to finish, and may be deep in its imports."""
        server_ended = self._server is not None and self._server.pid is None
        if worker.name in self._have_started and not server_ended:
            await worker.stop()
        else:
            await worker.stop(_SHORT_STOP_S)

    def _log_dir(self) -> Path:
        path = self._settings.state_dir / "logs"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(
                f"cannot make {path} ({e.strerror}): set TOKENYARD_STATE_DIR to a folder of yours"
            ) from None
        return path


def usable_cores() -> list[int]:
    """Cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
