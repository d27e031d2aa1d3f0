"""Keeps one host's workers of one pool as the plan says."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.concurrency import wait_at_most
from broker.connection import RedisClient, keep_trying
from broker.errors import UsageError
from broker.heartbeat import Heartbeat
from broker.pool_plan import PlannedWorker
from broker.store.monitor import MonitorStore
from broker.store.plans import HOST_TTL_S, PlanStore
from broker.worker_options import devices_of
from planner.autoscaling import ScaleTerms
from tokenyard.host_plan import HostPlan
from tokenyard.plan_memory import PlanMemory
from tokenyard.supervised_worker import SupervisedWorker
from tokenyard.supervision import USAGE_EXIT, Host, decide
from tokenyard.worker_failures import WorkerFailures
from tokenyard.worker_site import WorkerSite

log = logging.getLogger(__name__)

#: Plan, heartbeats and queue are looked at this often (seconds).
_LOOK_S = 0.5
#: What a worker that did not end by itself leaves behind is gone after this long (seconds; see ``ChildProcess``).
_LEFT_BEHIND_S = 5.0
#: A start that takes longer is none (seconds): the largest models load in minutes.
_START_TIMEOUT_S = 1800.0
#: A host's turn to leave all its workers ends by itself after this long (seconds).
_TURN_S = 30.0


@dataclass(frozen=True, slots=True)
class SupervisorTerms:
    """What a supervisor keeps to.

    Attributes:
        host: this host's name, as plans have it.
        models: models that may run here; the first where a plan names none.
        least: at least so many workers run.
        most: and at most so many.
        scale: how many run, by what there is to do.
        plan_file: where the last plan that was carried out is kept.
    """

    host: str
    models: tuple[str, ...]
    least: int
    most: int
    scale: ScaleTerms
    plan_file: Path


class Supervisor:
    """One host's part of a pool, or that of a cluster that places workers by itself (see ``WorkerSite``)."""

    def __init__(
        self,
        redis: RedisClient,
        pool: str,
        terms: SupervisorTerms,
        *,
        site: WorkerSite,
        check_words: Callable[[Sequence[str]], None],
        rng: random.Random,
    ) -> None:
        """Prepare; nothing starts yet.

        Args:
            redis: a connection.
            pool: the pool's name.
            terms: what to keep to.
            site: where the workers run.
            check_words: raises UsageError where ``tokenyard worker`` would not take these words.
            rng: of the jitter in backoffs.
        """
        self._terms = terms
        self._plans = PlanStore(redis, pool)
        self._monitor = MonitorStore(redis, pool)
        memory = PlanMemory(terms.plan_file)
        self._plan = HostPlan(terms.host, terms.models, site.cores, terms.scale, check_words, memory, site.view)
        self._failures = WorkerFailures(rng)
        self._site = site
        self._last_left = float("-inf")
        self._workers: dict[str, SupervisedWorker] = {}
        self._occupied: dict[str, float] = {}  # device -> until when
        self._changed = asyncio.Event()
        self._has_turn = False
        self._hurry = False
        self._marked: set[str] = set()
        self._mark_at = float("-inf")

    async def run(self) -> None:
        """Keep the workers as planned until cancelled; Redis may come and go, workers go on meanwhile."""
        await keep_trying(self._serve, log.warning)

    async def drain(self) -> None:
        """Drain all workers, and wait until they are gone."""
        for worker in self._workers.values():
            worker.drain()
        await asyncio.gather(*(worker.wait() for worker in self._workers.values()))

    def stop_now(self) -> None:
        """Let nothing run on: what workers run is handed back."""
        for worker in self._workers.values():
            worker.stop()

    async def _serve(self) -> None:
        while True:
            self._changed.clear()
            self._reap()
            await self._look()
            await wait_at_most(self._changed, _LOOK_S)

    async def _look(self) -> None:
        beats = await self._monitor.heartbeats()
        await self._see_ready(beats)  # first: what serves by now has proved the plan that the next one replaces
        await self._plan.refresh(self._plans)
        await self._plan.measure(self._plans, self._monitor, beats)
        await self._mark()
        wanted = self._plan.wanted(self._terms.least, self._terms.most)
        if wanted is not None:
            await self._carry_out(wanted, beats)

    async def _mark(self) -> None:
        """Let others see that there is a supervisor here."""
        now, hosts = asyncio.get_running_loop().time(), self._plan.hosts
        if hosts != self._marked or now >= self._mark_at:
            await self._plans.mark_hosts(hosts)
            self._marked, self._mark_at = hosts, now + HOST_TTL_S / 4

    async def _see_ready(self, beats: Mapping[str, Heartbeat | None]) -> None:
        now = asyncio.get_running_loop().time()
        for name, worker in self._workers.items():
            if worker.saw(beats.get(name)):
                log.info("worker %s is ready after %.1f s", name, now - worker.started)
                self._failures.got_ready(name)
                await self._plans.note_start(self._terms.host, now - worker.started)
            if worker.phase == "starting" and now - worker.started > _START_TIMEOUT_S:
                log.warning("worker %s did not get ready in %.0f s: stopping it", name, _START_TIMEOUT_S)
                self._failures.failed(name, now, got_ready=False)
                worker.stop()
        if all(name in self._workers and self._workers[name].ready for name in self._plan.names):
            self._plan.reached()

    async def _carry_out(self, wanted: Sequence[PlannedWorker], beats: Mapping[str, Heartbeat | None]) -> None:
        now = asyncio.get_running_loop().time()
        self._occupied = {device: until for device, until in self._occupied.items() if until > now}
        host = Host(
            wanted=wanted,
            processes=[worker.account() for worker in self._workers.values()],
            not_before=self._failures.not_before,
            occupied=self._occupied.keys(),
            others_serve=any(b is not None and b.state == "ready" and n not in self._workers for n, b in beats.items()),
            may_pause=self._has_turn,
            most=self._terms.most,
            own_devices=self._site.own_devices,
            unplaced=[n for n, worker in self._workers.items() if self._waits_long(worker, now)],
            now=now,
        )
        decision = decide(host)
        for name in decision.drain:
            log.info("worker %s drains", name)
            self._workers[name].drain()
        for planned in decision.start:
            await self._start(planned)
        await self._take_turn(decision.wants_pause)

    def _waits_long(self, worker: SupervisedWorker, now: float) -> bool:
        """Whether others should make room; who has just left has made some, which takes a moment to be given out."""
        since = max(worker.started, self._last_left)
        return worker.phase == "starting" and now - since > self._site.room_s and worker.waits_for_room

    async def _take_turn(self, wanted: bool) -> None:
        """Ask for this host's turn to serve nothing for a while, keep it as long as it does, and give it back."""
        serves = any(worker.phase == "ready" for worker in self._workers.values())
        if wanted or (self._has_turn and not serves and self._workers):
            self._has_turn = await self._plans.take_turn(self._terms.host, _TURN_S)
        elif self._has_turn:
            self._has_turn = False
            await self._plans.end_turn(self._terms.host)

    async def _start(self, planned: PlannedWorker) -> None:
        worker = SupervisedWorker(planned, self._site.child_of(planned))
        log.info("worker %s starts (log: %s)", worker.name, worker.log_at)
        await worker.start(self._changed)
        self._workers[worker.name] = worker

    def _reap(self) -> None:
        """See which workers have ended, and why."""
        now = asyncio.get_running_loop().time()
        for name, worker in list(self._workers.items()):
            code = worker.exit_code
            if code is None:
                continue
            del self._workers[name]
            self._last_left = now
            if code < 0:  # killed: its children may hold its devices for some seconds more
                self._occupied.update(dict.fromkeys(devices_of(worker.planned), now + _LEFT_BEHIND_S))
            if worker.draining:
                log.info("worker %s has left", name)
                continue
            wait_s = self._failures.failed(name, now, got_ready=worker.ready is not None)
            log.warning("worker %s ended: %s; starting it again in %.1f s", name, worker.how_it_ended(), wait_s)
            if self._failures.is_hopeless(name, usage_error=code == USAGE_EXIT):
                self._plan.give_up(name, worker.how_it_ended())
                self._failures.forget(name)


def log_folder(state_dir: Path) -> Path:
    """The folder of the workers' logs, made if missing.

    Raises:
        UsageError: it cannot be made.
    """
    path = state_dir / "logs"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot make {path} ({error.strerror}): set TOKENYARD_STATE_DIR to a folder of yours"
        raise UsageError(why) from None
    return path.absolute()
