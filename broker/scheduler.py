"""The scheduler of one pool: hold the lease, read what waits and how the workers are, decide, dispatch."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from broker.cluster import Heartbeat
from broker.concurrency import Pacer, run_together, wait_at_most
from broker.connection import PASSING, RedisClient, keep_trying
from broker.errors import LeaseLostError
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
from broker.jobs import WaitingJob
from broker.keys import LEVELS
from broker.placement import Placer
from broker.policies import make_policy
from broker.policies.base import Placement
from broker.recent_mix import MixTally
from broker.scheduler_stats import SchedulerStats
from broker.settings import Settings
from broker.silence import Silences
from broker.store.tenants import TenantStore
from broker.tenant_names import tenant_of
from broker.tenant_reader import TenantReader

log = logging.getLogger(__name__)

#: Jobs read from a request stream in one call.
_READ_JOBS = 500
#: Heartbeats are looked at this often (seconds), and at once when a worker says that its state changed.
LOOK_S = 1.0
#: A device queue's length must differ from our count for this many looks before we believe the queue.
_DOUBTS = 3
#: How often to look whether the end of the work can be brought nearer (seconds).
_FINISH_S = 0.25
#: How often to look for jobs whose time has come (seconds).
_DUE_S = 0.25
#: The lengths of ended jobs are kept for the planner this often (seconds).
_NOTE_S = 5.0
#: Batches of which we remember whether they are cancelled; what is forgotten is looked up again.
_BATCHES_KEPT = 10_000


class Scheduler:
    """Serves one pool for ever; several may run, one leads."""

    def __init__(self, redis: RedisClient, pool: str, settings: Settings, *, owner: str, rng: random.Random) -> None:
        make_policy(settings.policy)  # a wrong name shows at once, not when the lease comes
        self._settings = settings
        self._rng = rng
        self._store = TenantStore(
            redis, pool, owner, lease_ttl_s=settings.lease_ttl_s, result_ttl_s=settings.result_ttl_s
        )
        self._silences = Silences(2 * LOOK_S)  # outlives terms, and outages of Redis
        self.pool = pool
        self.stats = SchedulerStats()

    async def run(self) -> None:
        """Stand by, lead, and stand by again, until cancelled. Redis may come and go."""
        try:
            await keep_trying(self._serve, lambda text: log.warning("pool %s: %s", self.pool, text))
        finally:
            with suppress(*PASSING, TimeoutError):
                async with asyncio.timeout(1):
                    await self._store.release_lease()

    async def _serve(self) -> None:
        self._silences.interrupt()
        while True:
            while not await self._store.hold_lease():
                await self._listen()
                await asyncio.sleep(self._settings.lease_ttl_s / 3)
            log.info("pool %s: leading with epoch %d, policy %s", self.pool, self._store.epoch, self._settings.policy)
            try:
                await _Leadership(self._store, self._settings, self._rng, self.stats, self._silences).run()
            except LeaseLostError as e:
                log.warning("%s; standing by", e)

    async def _listen(self) -> None:
        """Standing by, hear the workers: one that died before the leader did is known to be silent when we lead."""
        beats = await self._store.heartbeats()
        self._silences.look(asyncio.get_running_loop().time())
        self._silences.keep_only(beats)
        for name, beat in beats.items():
            if beat is not None:
                self._silences.of(name, beat.seen)


class _Leadership:
    """One term as leader. All it knows is rebuilt from Redis when it starts."""

    def __init__(
        self,
        store: TenantStore,
        settings: Settings,
        rng: random.Random,
        stats: SchedulerStats,
        silences: Silences,
    ) -> None:
        self._store = store
        self._stats = stats
        self._silences = silences
        self._settings = settings
        self._placer = Placer(make_policy(settings.policy), rng, settings.round_trip_s)
        self._placer.quarantine.max_attempts = settings.max_attempts
        self._wake = asyncio.Event()  # something changed: decide again
        self._look = asyncio.Event()  # a worker changed: look at the heartbeats now
        self._space = {level: asyncio.Event() for level in LEVELS}
        self._batches: OrderedDict[str, bool] = OrderedDict()  # batch -> whether it is cancelled
        self._doubts: dict[str, int] = {}
        self._tenants = TenantReader(
            store, self._placer, settings.window_jobs, self._take_up, lambda more: self._see("tenants", more=more)
        )
        self._unreadable: set[str] = set()
        self._more: set[str] = set()  # levels of which more waits than the window holds
        self._recent = MixTally()
        self._recalled: dict[str, set[str]] = {}  # worker -> jobs that we took back: their event is yet to come

    async def run(self) -> None:
        await self._store.prepare()
        position = await self._store.last_event()
        await self._look_at_workers()
        positions = {level: await self._read_first(level) for level in LEVELS}
        await self._tenants.first()
        await run_together(
            self._renew_lease(),
            self._follow_events(position),
            self._watch_workers(),
            self._dispatch(),
            self._finish_up(),
            self._note_ended(),
            self._move_due(),
            self._tenants.run(),
            *(self._read(level, positions[level]) for level in LEVELS),
        )

    async def _renew_lease(self) -> None:
        epoch = self._store.epoch
        while True:
            await asyncio.sleep(self._settings.lease_ttl_s / 3)
            if not await self._store.hold_lease() or self._store.epoch != epoch:
                raise LeaseLostError(f"lost the lease of pool {self._store.pool}")

    # What waits

    async def _read_first(self, level: str) -> str:
        """Take up what was read before this term and not dispatched, and the first of what is new.

        Only then the term's decisions begin: with each level's jobs before them. Returns where to read on.
        """
        jobs = await self._store.read_pending(level, _READ_JOBS)
        if (room := self._settings.window_jobs - len(jobs)) > 0:
            jobs += await self._store.read_requests(level, min(room, _READ_JOBS))
        for start in range(0, len(jobs), _READ_JOBS):
            await self._take_up(jobs[start : start + _READ_JOBS])
        return jobs[-1].entry_id if jobs else "0"

    async def _read(self, level: str, position: str) -> None:
        window = self._placer.window
        space = self._space[level]
        while True:
            while (room := self._settings.window_jobs - window.count(level)) <= 0:
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
            self._freed()

    def _freed(self) -> None:
        for space in self._space.values():
            space.set()
        if self._placer.tenants.active:
            self._tenants.wake.set()

    # What happens

    async def _follow_events(self, position: str) -> None:
        while True:
            for position, fields in await self._store.events(position):  # noqa: B020  reads on from the last
                event = parse_event(fields)
                if event is None:
                    log.warning("pool %s: event %s is malformed, skipped", self._store.pool, position)
                else:
                    await self._apply(event)
            self._wake.set()

    async def _apply(self, event: Event) -> None:
        match event:
            case Completed(worker, jobs):
                self._placer.completed(worker, jobs, asyncio.get_running_loop().time())
                self._recent.add(jobs.values())
                self._stats.completed += len(jobs)
                self._stats.length_error = self._placer.calibration.error
            case Returned(worker, jobs):
                self._stats.returned += len(jobs)
                ours = self._recalled.get(worker, set())
                self._placer.forget(worker, [job for job in jobs if job not in ours])
                ours.difference_update(jobs)
            case Dropped(worker, jobs):
                self._placer.forget(worker, jobs, back=False)
            case Submitted():
                self._tenants.wake.set()
            case WorkerChanged():
                self._look.set()
            case BatchCancelled(batch_id):
                await self._cancel(batch_id)
            case Withdrawn(jobs):
                await self._withdraw(set(jobs))

    async def _move_due(self) -> None:
        """By a timer, for nothing else happens when a time has come."""
        while True:
            while await self._store.move_due():
                pass
            await asyncio.sleep(_DUE_S)

    async def _note_ended(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_S)
            if mix := self._recent.take():
                await self._store.note_ended(mix)
            await self._store.tidy_batches()

    async def _cancel(self, batch_id: str) -> None:
        if not await self._store.cancelled([batch_id]):
            log.warning("pool %s: batch %s is not cancelled, though an event says so", self._store.pool, batch_id)
            return
        self._remember(batch_id, cancelled=True)
        await self._store.hasten(batch_id)
        await self._take_out(self._placer.of_batch(batch_id))
        # What has not started ends now, not when its device has a free seat. (Its worker aborts what runs.)
        devices = self._placer.cluster.devices
        await self._recall(
            {name: jobs for name, d in devices.items() if (jobs := [j for j in d.in_flight if batch_of(j) == batch_id])}
        )

    async def _withdraw(self, ended: set[str]) -> None:
        """Jobs that ended while they waited here."""
        await self._take_out([job for job in self._placer.waiting() if job.job_id in ended])

    async def _take_out(self, jobs: Sequence[WaitingJob]) -> None:
        for job in jobs:
            self._placer.remove(job)
        for start in range(0, len(jobs), _READ_JOBS):
            await self._discard(jobs[start : start + _READ_JOBS])

    # How the workers are

    async def _watch_workers(self) -> None:
        while True:
            await wait_at_most(self._look, LOOK_S)
            self._look.clear()
            await self._look_at_workers()
            self._wake.set()

    async def _look_at_workers(self) -> None:
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
                if self._placer.cluster.refresh(name, beat, asyncio.get_running_loop().time()):
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

    # Decide and carry out

    async def _dispatch(self) -> None:
        now = asyncio.get_running_loop().time
        pacer = Pacer()
        while True:
            await self._wake.wait()
            await pacer.pause()
            self._wake.clear()
            while groups := self._decide(now):
                await self._carry_out(groups)
                self._freed()

    def _decide(self, now: Callable[[], float]) -> dict[str, list[Placement]]:
        began = now()
        groups = self._placer.decide(began)
        self._stats.decided(now() - began, sum(map(len, groups.values())))
        return groups

    async def _carry_out(self, groups: dict[str, list[Placement]]) -> None:
        closed, dropped = await self._store.dispatch(groups, self._placer.cluster.incarnations(groups))
        if closed:
            for worker in closed:
                self._placer.close(worker)
            self._placer.take_back(placement for worker in closed for placement in groups[worker])
            self._look.set()
        if dropped:
            for worker, placements in groups.items():
                self._placer.forget(worker, [p.job.job_id for p in placements if p.job.job_id in dropped])

    # The end of the work

    async def _finish_up(self) -> None:
        """Where nothing waits: take back what would end sooner elsewhere, run stragglers a second time."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_FINISH_S)
            decided = self._placer.finish_up(now())
            await self._recall(decided.recalls)
            if decided.copies:
                made = await self._store.copy(
                    [
                        (c.job.job_id, c.device, c.job.prompt_tokens, c.job.output_tokens, c.predicted_s)
                        for c in decided.copies
                    ]
                )
                for copy in decided.copies:
                    if copy.job.job_id not in made:
                        self._placer.uncopy(copy.device, copy.job.job_id)

    async def _recall(self, jobs: Mapping[str, Sequence[str]]) -> None:
        """Take jobs back that their workers have not started; of a cancelled batch, they end."""
        if not jobs:
            return
        back = await self._store.recall(jobs)
        for worker, of_worker in jobs.items():
            mine = [job for job in of_worker if job in back]
            self._recalled.setdefault(worker, set()).update(mine)
            self._placer.forget(worker, mine)
