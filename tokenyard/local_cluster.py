"""A whole cluster on one machine: server, scheduler and workers as processes of their own."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.errors import TokenyardError, UsageError
from broker.settings import Settings
from tokenyard.child_process import ChildProcess
from tokenyard.embedded_server import EmbeddedServer


class ClusterFailedError(TokenyardError):
    """No worker is left, or the scheduler ended."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker to start.

    Attributes:
        name: its name in the pool.
        options: words for ``tokenyard worker``.
    """

    name: str
    options: tuple[str, ...]


def demo_workers(cores: Sequence[int]) -> list[WorkerSpec]:
    """Two vLLM workers of unequal capacity, a core each: precision, seats and KV space differ."""
    first, second = cores[0], cores[-1]
    fast = f"--dtype bfloat16 --seats 32 --kv-gib 0.5 --context 2048 --eager --cores {first}"
    slow = f"--dtype float32 --seats 8 --kv-gib 0.25 --context 2048 --eager --cores {second}"
    return [WorkerSpec("fast", tuple(fast.split())), WorkerSpec("slow", tuple(slow.split()))]


def parse_worker(text: str, number: int) -> WorkerSpec:
    """A worker as a person writes it: ``NAME: OPTIONS`` or just options of ``tokenyard worker``.

    Raises:
        UsageError: the quotes do not match.
    """
    name, colon, rest = text.partition(":")
    if not colon or " " in name.strip() or name.startswith("-"):
        name, rest = f"worker-{number}", text
    try:
        return WorkerSpec(name.strip(), tuple(shlex.split(rest)))
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
        self.workers: list[ChildProcess] = []
        self.redis_url = settings.redis_url.get_secret_value() if settings.redis_url else ""

    async def __aenter__(self) -> LocalCluster:
        if not self.redis_url:
            self._server = EmbeddedServer(self._settings.state_dir / "redis")
            await self._server.start()
            self.redis_url = self._server.url
            self._report(f"embedded server: {self._server.redis_cli_hint}")
        return self

    async def __aexit__(self, *_error: object) -> None:
        children = [*self.workers, *([self._scheduler] if self._scheduler else [])]
        await asyncio.gather(*(child.stop() for child in children))
        if self._server is not None:
            await self._server.stop()

    async def start(self) -> None:
        """Start scheduler and workers; they get ready on their own."""
        environment = {
            "TOKENYARD_REDIS_URL": self.redis_url,
            "TOKENYARD_POOL": self._settings.pool,
            "TOKENYARD_POLICY": self._settings.policy,
            "NO_COLOR": "1",
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
            self.workers.append(child)
        self._report(f"logs: {logs}/")

    async def watch(self) -> None:
        """Report workers that end; return never while one is left.

        Raises:
            ClusterFailedError: the scheduler ended, or no worker is left.
        """
        assert self._scheduler is not None, "start() comes first"
        waits = {asyncio.ensure_future(child.wait()): child for child in [self._scheduler, *self.workers]}
        left = len(self.workers)
        try:
            while True:
                ended, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    child = waits.pop(task)
                    left -= child is not self._scheduler
                    message = f"{child.name} ended: {child.last_error()} (log: {child.log_path})"
                    if child is self._scheduler or left == 0:
                        raise ClusterFailedError(message)
                    self._report(message)
        finally:
            for task in waits:
                task.cancel()

    async def drain(self) -> None:
        """Let the workers finish what runs and hand back the rest."""
        for child in self.workers:
            child.terminate()
        await asyncio.gather(*(child.wait() for child in self.workers))

    def stop_now(self) -> None:
        """The second word: running jobs are handed back, too."""
        for child in self.workers:
            child.terminate()

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
