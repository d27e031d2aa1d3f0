"""One term as a pool's leader: the lease renewed, and the loops that read, watch, decide and tidy up."""

from __future__ import annotations

import asyncio
import random

from broker.concurrency import run_together
from broker.decider import Decider
from broker.errors import LeaseLostError
from broker.event_reader import EventReader
from broker.placement import Placer
from broker.policies import make_policy
from broker.request_reader import RequestReader
from broker.scheduler_stats import SchedulerStats
from broker.settings import Settings
from broker.silence import Silences
from broker.store.tenants import TenantStore
from broker.worker_watch import WorkerWatch

#: How often to look for jobs whose time has come (seconds).
_DUE_S = 0.25
#: The lengths of ended jobs are kept for the planner this often (seconds).
_NOTE_S = 5.0


class Leadership:
    """All that a term knows is rebuilt from Redis when it starts."""

    def __init__(
        self,
        store: TenantStore,
        settings: Settings,
        rng: random.Random,
        stats: SchedulerStats,
        silences: Silences,
    ) -> None:
        self._store = store
        self._settings = settings
        placer = Placer(make_policy(settings.policy), rng, settings.round_trip_s)
        placer.quarantine.max_attempts = settings.max_attempts
        wake = asyncio.Event()  # something changed: decide again
        self._workers = WorkerWatch(store, placer, settings, stats, silences, wake)
        self._requests = RequestReader(store, placer, settings.window_jobs, wake)
        look = self._workers.look
        self._decider = Decider(store, placer, stats, wake=wake, look=look, freed=self._requests.freed)
        self._events = EventReader(store, placer, stats, self._requests, self._decider, look)

    async def run(self) -> None:
        """Lead until the term ends.

        Raises:
            LeaseLostError: another scheduler leads, or the request streams were deleted.
        """
        await self._store.prepare()
        position = await self._store.last_event()
        await self._workers.look_at_workers()
        await self._requests.first()
        await run_together(
            self._renew_lease(),
            self._events.run(position),
            self._workers.run(),
            self._decider.dispatch(),
            self._decider.finish_up(),
            self._note_ended(),
            self._move_due(),
            *self._requests.loops(),
        )

    async def _renew_lease(self) -> None:
        epoch = self._store.epoch
        while True:
            await asyncio.sleep(self._settings.lease_ttl_s / 3)
            if not await self._store.hold_lease() or self._store.epoch != epoch:
                raise LeaseLostError(f"lost the lease of pool {self._store.pool}")

    async def _move_due(self) -> None:
        """By a timer, for nothing else happens when a time has come."""
        while True:
            while await self._store.move_due():
                pass
            await asyncio.sleep(_DUE_S)

    async def _note_ended(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_S)
            if mix := self._events.recent.take():
                await self._store.note_ended(mix)
            await self._store.tidy_batches()
