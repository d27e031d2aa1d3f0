"""How a pool's workers are: their heartbeats, those that died, and whether our count of their jobs is right."""

from __future__ import annotations

import asyncio
import logging

from broker.concurrency import wait_at_most
from broker.heartbeat import LOOK_S, Heartbeat, look_interval_s
from broker.placement import Placer
from broker.scheduler_stats import SchedulerStats
from broker.settings import Settings
from broker.silence import Silences
from broker.store.scheduler import SchedulerStore
from broker.tenant_names import tenant_of

log = logging.getLogger(__name__)

#: A device queue's length must differ from our count this often, ``LOOK_S`` apart, before we believe the queue.
_DOUBTS = 3


class WorkerWatch:
    """One term's looks at the workers. ``look`` is set when a worker changed: the next look comes at once."""

    def __init__(
        self,
        store: SchedulerStore,
        placer: Placer,
        settings: Settings,
        stats: SchedulerStats,
        silences: Silences,
        wake: asyncio.Event,
    ) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            store: heartbeats and device queues.
            placer: whose devices are kept as the workers are.
            settings: after how long a worker is dead, and how many attempts a job has.
            stats: counts dead workers.
            silences: how long each has been silent, from before this term, too.
            wake: set after each look.
        """
        self._store = store
        self._placer = placer
        self._settings = settings
        self._stats = stats
        self._silences = silences
        self._wake = wake
        self._doubts: dict[str, int] = {}
        self._counted_at = float("-inf")
        self._unreadable: set[str] = set()
        self.look = asyncio.Event()

    async def run(self) -> None:
        """Look every so often, and at once when a worker says that its state changed, for ever."""
        while True:
            workers = len(self._placer.cluster.devices)
            await wait_at_most(self.look, look_interval_s(workers, self._settings.heartbeat_interval_s))
            self.look.clear()
            await self.look_at_workers()
            self._wake.set()

    async def look_at_workers(self) -> None:
        """Take over all heartbeats; declare dead who was silent for too long."""
        now = await self._store.clock()
        beats = await self._store.heartbeats()
        patience = self._settings.dead_after_s
        self._silences.look(asyncio.get_running_loop().time())
        self._silences.keep_only(beats)
        alive: list[str] = []
        for name, beat in beats.items():
            if beat is None or self._silences.of(name, beat.seen) > patience:
                await self._declare_dead(name, beat)
            elif now - beat.seen <= patience:  # else it may have died before we looked: it gets nothing as yet
                alive.append(name)
                self._unreadable.discard(name)
                age = max(now - beat.measured, 0.0)
                if self._placer.cluster.refresh(name, beat, asyncio.get_running_loop().time() - age):
                    await self._adopt(name, beat)
        self._placer.cluster.keep_only(alive)
        await self._check_counts(alive)

    async def _adopt(self, name: str, beat: Heartbeat) -> None:
        """A device new to us may have jobs already, from a scheduler before us."""
        for job in await self._store.in_flight(name):
            self._placer.cluster.devices[name].bind(job)
            self._placer.tenants.ledger.placed(job.job_id, tenant_of(job.job_id), 0.0)
            self._placer.quarantine.watched |= job.deaths > 0
        log.info("pool %s: worker %s (%s, %s) is %s", self._store.pool, name, beat.engine, beat.device, beat.state)

    async def _declare_dead(self, name: str, beat: Heartbeat | None) -> None:
        returned = await self._store.declare_dead(
            name,
            silent_s=self._settings.dead_after_s,
            max_attempts=self._settings.max_attempts,
            seen=beat.seen if beat else None,
        )
        if returned >= 0:
            self._stats.dead_workers += 1
            why = "there is no heartbeat" if beat is None else "it fell silent"
            log.warning("pool %s: worker %r is dead (%s); %d jobs went back", self._store.pool, name, why, returned)
        elif returned == -1 and beat is None and name not in self._unreadable:
            log.warning("pool %s: the heartbeat of worker %r cannot be read: it gets no jobs", self._store.pool, name)
            self._unreadable.add(name)

    async def _check_counts(self, names: list[str]) -> None:
        """Our count of a device's jobs against its queue: an event that we missed would block the device for ever."""
        now = asyncio.get_running_loop().time()
        if now < self._counted_at + LOOK_S:
            return
        self._counted_at = now
        for name, depth in (await self._store.device_depths(names)).items():
            device = self._placer.cluster.devices.get(name)
            if device is None or depth >= len(device.in_flight):
                self._doubts.pop(name, None)
                continue
            self._doubts[name] = self._doubts.get(name, 0) + 1
            if self._doubts[name] >= _DOUBTS:
                before = set(device.in_flight)
                there = {job.job_id for job in await self._store.in_flight(name)}
                self._placer.forget(name, before - there)
