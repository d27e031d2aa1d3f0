"""Follows what happens in a pool: jobs that end or come back, workers that change, batches that are cancelled."""

from __future__ import annotations

import asyncio
import logging

from broker.decider import Decider
from broker.events import (
    BatchCancelled,
    Completed,
    Dropped,
    Event,
    Returned,
    Submitted,
    Withdrawn,
    WorkerChanged,
    parse_event,
)
from broker.job_record import batch_of
from broker.placement import Placer
from broker.recent_mix import MixTally
from broker.request_reader import RequestReader
from broker.scheduler_stats import SchedulerStats
from broker.store.scheduler import SchedulerStore

log = logging.getLogger(__name__)


class EventReader:
    """One term's reading of the event stream. ``recent`` tallies the lengths of the jobs that ended."""

    def __init__(
        self,
        store: SchedulerStore,
        placer: Placer,
        stats: SchedulerStats,
        requests: RequestReader,
        decider: Decider,
        look: asyncio.Event,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: the events.
            placer: told which devices have room again.
            stats: counts jobs that ended or came back.
            requests: told of cancelled batches and of tenants' submissions.
            decider: woken by events; takes jobs of cancelled batches back.
            look: set when a worker changed.
        """
        self._store = store
        self._placer = placer
        self._stats = stats
        self._requests = requests
        self._decider = decider
        self._look = look
        self.recent = MixTally()

    async def run(self, position: str) -> None:
        """For ever: what happens after ``position``."""
        while True:
            for position, fields in await self._store.events(position):  # noqa: B020  reads on from the last
                event = parse_event(fields)
                if event is None:
                    log.warning("pool %s: event %s is malformed, skipped", self._store.pool, position)
                else:
                    await self._apply(event)
            self._decider.wake.set()

    async def _apply(self, event: Event) -> None:
        match event:
            case Completed(worker, jobs):
                self._placer.completed(worker, jobs, asyncio.get_running_loop().time())
                self.recent.add(jobs.values())
                self._stats.completed += len(jobs)
                self._stats.length_error = self._placer.calibration.error
            case Returned(worker, jobs):
                self._stats.returned += len(jobs)
                self._placer.forget(worker, self._decider.not_recalled(worker, jobs))
            case Dropped(worker, jobs):
                self._placer.forget(worker, jobs, back=False)
            case Submitted():
                self._requests.submitted()
            case WorkerChanged():
                self._look.set()
            case BatchCancelled(batch_id):
                await self._cancel(batch_id)
            case Withdrawn(jobs):
                await self._withdraw(set(jobs))

    async def _cancel(self, batch_id: str) -> None:
        if not await self._store.cancelled([batch_id]):
            log.warning("pool %s: batch %s is not cancelled, though an event says so", self._store.pool, batch_id)
            return
        self._requests.cancelled(batch_id)
        await self._store.hasten(batch_id)
        await self._requests.take_out(self._placer.of_batch(batch_id))
        # What has not started ends now, not when its device has a free seat. (Its worker aborts what runs.)
        devices = self._placer.cluster.devices
        await self._decider.recall(
            {name: jobs for name, d in devices.items() if (jobs := [j for j in d.in_flight if batch_of(j) == batch_id])}
        )

    async def _withdraw(self, ended: set[str]) -> None:
        """Jobs that ended while they waited here."""
        await self._requests.take_out([job for job in self._placer.waiting() if job.job_id in ended])
