"""What a host's supervisor does next: which workers to start and which to drain. Pure.

Old workers go one after another, each when its successor serves; where a successor needs the devices of the one before
it, that one drains first, and others serve meanwhile. Never do two workers hold the same device, nor more run than may.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.worker_options import check_options, devices_of, names_cores

Phase = Literal["starting", "ready", "draining"]

#: A worker that died is started again after this long, doubled each time up to the longest (seconds).
_FIRST_S = 1.0
_LONGEST_S = 60.0
#: A worker that never got ready in so many starts is not one that can run here.
STARTS = 3
#: ``tokenyard worker`` ends so where its options are wrong.
USAGE_EXIT = 2


class HostProcess(NamedTuple):
    """A worker process of this host.

    Attributes:
        name: see ``process_name``.
        planned: what it runs.
        phase: where it is in its life.
    """

    name: str
    planned: PlannedWorker
    phase: Phase


@dataclass(frozen=True, slots=True)
class Host:
    """What is known when a decision is made.

    Attributes:
        wanted: workers that should run.
        processes: those that do.
        not_before: process name -> when it may be started again, on the clock of ``now``.
        occupied: devices that are not free yet, though no process of ours holds them.
        others_serve: whether a worker elsewhere in the pool is ready.
        may_pause: whether this host may leave all its workers for a while.
        most: most processes at once.
        own_devices: whether the plan says which devices each process has; where something else gives them out, they
            are not compared.
        unplaced: processes that have waited long enough for others to make room.
        now: seconds on any steady clock.
    """

    wanted: Sequence[PlannedWorker]
    processes: Sequence[HostProcess]
    not_before: Mapping[str, float] = field(default_factory=dict[str, float])
    occupied: Collection[str] = ()
    others_serve: bool = False
    may_pause: bool = True
    most: int = 10**6
    own_devices: bool = True
    unplaced: Collection[str] = ()
    now: float = 0.0

    def devices(self, worker: PlannedWorker) -> frozenset[str]:
        """The devices that nobody else may have."""
        return devices_of(worker) if self.own_devices else frozenset()


class Decision(NamedTuple):
    """What to do now.

    Attributes:
        start: workers to start.
        drain: names of processes to drain.
        wants_pause: whether nothing happens for want of ``Host.may_pause``.
    """

    start: tuple[PlannedWorker, ...] = ()
    drain: tuple[str, ...] = ()
    wants_pause: bool = False


def process_name(planned: PlannedWorker) -> str:
    """The name that a planned worker has in its pool: another one where it is to run something else.

    So the one before and its successor can serve side by side, and a restart has the name of the one that died.
    """
    parts = [*planned.options, str(planned.tensor_parallel), *map(str, planned.devices)]
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=3).hexdigest()
    return f"{planned.name}.{digest}"


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures one after another, in seconds."""
    return min(_FIRST_S * 2.0 ** min(failures - 1, 16), _LONGEST_S)


def own_workers(plan: PoolPlan, host: str, models: Collection[str], cores: int) -> tuple[PlannedWorker, ...]:
    """The plan's workers of this host, their options checked.

    Args:
        plan: the pool's plan.
        host: this host's name.
        models: models that may run here.
        cores: how many cores it has.

    Raises:
        UsageError: there is none of this host, and it is not to run nothing either; or one that cannot be. The message
            says why.
    """
    own = tuple(worker for worker in plan.workers if worker.host == host)
    if not own and host not in plan.idle_hosts:
        hosts = sorted({worker.host for worker in plan.workers})[:5]
        named = f"it names {', '.join(hosts)}" if hosts else "it names no host"
        raise UsageError(f"plan {plan.version} has no worker for host {host} ({named})")
    for worker in own:
        try:
            check_options(worker.options, models)
        except UsageError as error:
            raise UsageError(f"plan {plan.version}, worker {worker.name}: {error}") from None
        if names_cores(worker.options) and any(index >= cores for index in worker.devices):
            raise UsageError(f"plan {plan.version}, worker {worker.name}: this host has {cores} cores, from 0 on")
    return own


def decide(host: Host) -> Decision:
    """The next starts and drains; nothing where something is under way that must come to its end first."""
    wanted = {process_name(worker): worker for worker in host.wanted}
    have = {process.name for process in host.processes}
    obsolete = [p for p in host.processes if p.phase != "draining" and p.name not in wanted]
    missing = [worker for name, worker in wanted.items() if name not in have]
    if not obsolete:
        return Decision(start=tuple(_fitting(host, missing)))
    useless = tuple(p.name for p in obsolete if p.phase == "starting")
    if useless:
        return Decision(drain=useless)
    if any(p.phase != "ready" for p in host.processes):
        return Decision(drain=_room_makers(host, obsolete))
    if not missing:
        return Decision(drain=tuple(p.name for p in obsolete))
    return _replace(host, wanted, obsolete, missing)


def _replace(
    host: Host, wanted: Mapping[str, PlannedWorker], obsolete: Sequence[HostProcess], missing: Sequence[PlannedWorker]
) -> Decision:
    """One step of a change, where everything that runs is ready."""
    due = [worker for worker in missing if host.not_before.get(process_name(worker), 0.0) <= host.now]
    new = [p for p in host.processes if p.name in wanted]
    if new and len(host.processes) > len(wanted):  # one more serves than will in the end
        return Decision(drain=(_least_useful(obsolete, due).name,))
    start = next(_fitting(host, missing), None)
    if start is not None:
        return Decision(start=(start,))
    blocking = [b for worker in due if (b := _blockers(host, worker, obsolete))]
    if not blocking:
        return Decision()
    fewest = min(blocking, key=len)
    if len(fewest) == len(host.processes) and host.others_serve and not host.may_pause:
        return Decision(wants_pause=True)
    return Decision(drain=tuple(p.name for p in fewest))


def _room_makers(host: Host, obsolete: Sequence[HostProcess]) -> tuple[str, ...]:
    """An old worker that goes before its successor serves: that one has no room beside it."""
    if not host.unplaced or any(p.phase == "draining" for p in host.processes):
        return ()
    return (obsolete[0].name,)


def _fitting(host: Host, missing: Sequence[PlannedWorker]) -> Iterator[PlannedWorker]:
    """Those that can start now beside each other and what runs."""
    taken = set(host.occupied)
    for process in host.processes:
        taken.update(host.devices(process.planned))
    room = host.most - len(host.processes)
    for worker in missing:
        due = host.not_before.get(process_name(worker), 0.0) <= host.now
        if due and room > 0 and taken.isdisjoint(host.devices(worker)):
            taken.update(host.devices(worker))
            room -= 1
            yield worker


def _blockers(host: Host, worker: PlannedWorker, obsolete: Sequence[HostProcess]) -> list[HostProcess]:
    """Old workers that must go before this one can start; empty where their going would not be enough."""
    needed = host.devices(worker)
    if not needed.isdisjoint(host.occupied):
        return []
    in_the_way = [p for p in obsolete if not needed.isdisjoint(devices_of(p.planned))]
    held = {p.name for p in in_the_way}
    if any(not needed.isdisjoint(devices_of(p.planned)) for p in host.processes if p.name not in held):
        return []
    if not in_the_way and len(host.processes) >= host.most:
        return [obsolete[0]]
    return in_the_way


def _least_useful(obsolete: Sequence[HostProcess], due: Sequence[PlannedWorker]) -> HostProcess:
    """The old worker to go next: one whose devices are waited for."""
    waited = {device for worker in due for device in devices_of(worker)}
    return next((p for p in obsolete if not waited.isdisjoint(devices_of(p.planned))), obsolete[0])
