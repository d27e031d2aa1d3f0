"""Reads the request streams into the scheduler's windows, and ends what waits there of cancelled batches."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from typing import Any

from broker.jobs import WaitingJob
from broker.keys import LEVELS
from broker.placement import Placer
from broker.store.tenants import TenantStore
from broker.tenant_reader import TenantReader

#: Jobs read from a request stream, or ended, in one call.
_READ_JOBS = 500
#: Batches of which we remember whether they are cancelled; what is forgotten is looked up again.
_BATCHES_KEPT = 10_000


class RequestReader:
    """One term's reading: the default tenant's streams here, those of the others by a ``TenantReader``."""

    def __init__(self, store: TenantStore, placer: Placer, window_jobs: int, wake: asyncio.Event) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: the streams.
            placer: whose windows are filled.
            window_jobs: most jobs in the windows, of each priority.
            wake: set when jobs came.
        """
        self._store = store
        self._placer = placer
        self._window_jobs = window_jobs
        self._wake = wake
        self._space = {level: asyncio.Event() for level in LEVELS}
        self._batches: OrderedDict[str, bool] = OrderedDict()  # batch -> whether it is cancelled
        self._more: set[str] = set()  # levels of which more waits than the window holds
        self._positions: dict[str, str] = {}  # level -> the last entry read
        self._tenants = TenantReader(
            store, placer, window_jobs, self._take_up, lambda more: self._see("tenants", more=more)
        )

    async def first(self) -> None:
        """What was read before this term and not dispatched, and the first of what is new.

        Only then the term's decisions begin: with each level's jobs before them.
        """
        self._positions = {level: await self._read_first(level) for level in LEVELS}
        await self._tenants.first()

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Read on for ever, each stream by itself."""
        return [self._tenants.run(), *(self._read(level, self._positions[level]) for level in LEVELS)]

    def submitted(self) -> None:
        """A tenant has new jobs."""
        self._tenants.wake.set()

    def freed(self) -> None:
        """Jobs have left the windows."""
        for space in self._space.values():
            space.set()
        if self._placer.tenants.active:
            self._tenants.wake.set()

    def cancelled(self, batch_id: str) -> None:
        """From now on, jobs of this batch end when they are read."""
        self._remember(batch_id, cancelled=True)

    async def take_out(self, jobs: Sequence[WaitingJob]) -> None:
        """End jobs that wait here: their batch is cancelled, or they have ended already."""
        for job in jobs:
            self._placer.remove(job)
        for start in range(0, len(jobs), _READ_JOBS):
            await self._discard(jobs[start : start + _READ_JOBS])

    async def _read_first(self, level: str) -> str:
        """Returns where to read on."""
        jobs = await self._store.read_pending(level, _READ_JOBS)
        if (room := self._window_jobs - len(jobs)) > 0:
            jobs += await self._store.read_requests(level, min(room, _READ_JOBS))
        for start in range(0, len(jobs), _READ_JOBS):
            await self._take_up(jobs[start : start + _READ_JOBS])
        return jobs[-1].entry_id if jobs else "0"

    async def _read(self, level: str, position: str) -> None:
        window = self._placer.window
        space = self._space[level]
        while True:
            while (room := self._window_jobs - window.count(level)) <= 0:
                self._see(level, more=True)
                space.clear()
                await space.wait()
            limit = min(room, _READ_JOBS)
            jobs = await self._store.read_requests(level, limit)
            if jobs:
                position = jobs[-1].entry_id
                await self._take_up(jobs)
            self._see(level, more=len(jobs) == limit)
            if len(jobs) < limit:
                position = await self._store.wait_for_request(level, position)

    def _see(self, level: str, *, more: bool) -> None:
        """Whether the window holds all that waits at this level."""
        (self._more.add if more else self._more.discard)(level)
        self._placer.whole = not self._more

    async def _take_up(self, jobs: Sequence[WaitingJob]) -> None:
        """Jobs into the window; those of cancelled batches end here, also where no device is there to take them."""
        new = {job.batch_id for job in jobs} - self._batches.keys()
        cancelled = await self._store.cancelled(new)
        for batch_id in new:
            self._remember(batch_id, cancelled=batch_id in cancelled)
        discarded: list[WaitingJob] = []
        for job in jobs:
            if self._batches.get(job.batch_id):
                discarded.append(job)
            else:
                self._placer.add(job)
        self._wake.set()
        await self._discard(discarded)

    def _remember(self, batch_id: str, *, cancelled: bool) -> None:
        """What is cancelled stays so, whatever an answer says that was under way when it came."""
        self._batches[batch_id] = cancelled or self._batches.pop(batch_id, False)
        while len(self._batches) > _BATCHES_KEPT:
            self._batches.popitem(last=False)

    async def _discard(self, jobs: Sequence[WaitingJob]) -> None:
        if jobs:
            await self._store.discard(jobs)
            self.freed()
