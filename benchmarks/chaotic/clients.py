"""The clients: each submits its batch and collects it, by the command line, and begins again where it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.chaotic.jobs import BatchFile
from benchmarks.chaotic.site import Site
from benchmarks.cluster import Process

#: Clients that have a batch under way at once: enough that there is always more than all seats hold.
AT_ONCE = 6
_AGAIN_S = 0.5


class BatchClient:
    """One batch from its file to its results."""

    def __init__(self, site: Site, batch: BatchFile) -> None:
        self.batch = batch
        self.kills = 0
        self.runs = 0
        self.submitted = False
        self.done = False
        self.errors: list[str] = []
        self._site = site
        self._process: Process | None = None

    @property
    def out(self) -> Path:
        """File of its responses."""
        return self.batch.path.with_suffix(".out")

    @property
    def errors_out(self) -> Path:
        """File of its errors."""
        return self.batch.path.with_suffix(".errors")

    @property
    def alive(self) -> bool:
        """Whether a command runs that can be killed."""
        return self._process is not None and not self._process.ended

    async def run(self) -> None:
        """Submit and collect, each as often as it takes."""
        batch = self.batch
        await self._until_done("submit", str(batch.path), "--batch", batch.name)
        self.submitted = True
        await self._until_done("collect", batch.name, "-o", str(self.out), "--errors", str(self.errors_out))
        self.done = True

    def kill(self) -> None:
        """``kill -9`` the command that runs."""
        assert self._process is not None, "it is alive"
        self.kills += 1
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)

    def lines(self) -> int:
        """Results in its files so far."""
        return sum(path.read_bytes().count(b"\n") for path in (self.out, self.errors_out) if path.exists())

    async def end(self) -> None:
        """End it for good."""
        if self._process is not None:
            await self._process.stop()

    async def _until_done(self, *words: str) -> None:
        while True:
            self.runs += 1
            name = f"client-{self.batch.name}.{self.runs}"
            self._process = Process(name, words, log_dir=self._site.folder, environment=self._site.environment)
            await self._process.start()
            code = await self._process.wait()
            if code == 0:
                return
            if code > 0:
                self.errors.append(self._process.how_it_ended())
            await asyncio.sleep(_AGAIN_S)


async def run_clients(clients: Sequence[BatchClient]) -> None:
    """Run all, some at once."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(client: BatchClient) -> None:
        async with places:
            await client.run()

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(one(client))
