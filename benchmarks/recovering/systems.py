"""The queues that are compared: how their processes are started, and jobs given to them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from benchmarks.chaotic.site import POOL
from benchmarks.cluster import BenchmarkError
from benchmarks.peers import ENVIRONMENTS, ROOT
from benchmarks.peers.recovery_job import LEDGER
from benchmarks.requests import MODEL
from broker.client import connect_client
from broker.openai_batch import RequestLine

OURS = "tokenyard"
PEERS = ("arq", "saq")


class System:
    """One queue on one server, in a folder of its own."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        self.name = name
        self.ledger = folder / "ledger"
        self._url = url
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start what it needs beside workers."""
        if self.name == OURS:
            self._start("scheduler", sys.executable, "-m", "tokenyard", "scheduler", "--pool", POOL)

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker with the settings it comes with."""
        if self.name == OURS:
            return self._start(name, sys.executable, "-m", "benchmarks.recovering.worker", self._url, name)
        return self._start(name, *self._peer("work", self._url))

    async def submit(self, names: Sequence[str], seconds: float) -> None:
        """Queue a job for each name, in this order."""
        if self.name == OURS:
            async with connect_client(self._url) as client:
                await client.registry.add_pool(POOL, [MODEL])
                await client.submit((_line(name, seconds, i) for i, name in enumerate(names)), "recovery")
                await client.seal("recovery")
            return
        command = self._peer("submit", self._url, str(seconds), *names)
        await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=self._environment(), check=True)

    def counts(self, what: str) -> Counter[str]:
        """How often each job ``began`` or ``ended``."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return Counter(line.partition(" ")[2] for line in lines if line.startswith(f"{what} "))

    def end(self) -> None:
        """End all its processes."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _peer(self, *words: str) -> list[str]:
        return [str(python_of(self.name)), "-m", f"benchmarks.peers.{self.name}_recovery", *words]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, LEDGER: str(self.ledger), "TOKENYARD_REDIS_URL": self._url}

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        BenchmarkError: it is not installed.
    """
    python = ENVIRONMENTS / peer / "bin" / "python"
    if not python.exists():
        raise BenchmarkError(f"{peer} is not installed: run `make bench-peers-setup`, or leave it out of --peers")
    return python


def _line(name: str, seconds: float, number: int) -> RequestLine:
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": f"{name} {seconds}"}]}
    return RequestLine(name, "/v1/chat/completions", MODEL, orjson.dumps(body), 1, number + 1)
