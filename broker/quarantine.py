"""Which jobs may run beside which, once a worker has died: one of those it ran may have killed it. Pure.

Every job that a dying worker had started is a *suspect*, and charged an attempt. Suspects run in small groups: the next
death narrows the circle down. With n of them, a device has at most the root of n at a time, so that three deaths find
one killer among n: all, then the root of n, then itself. A suspect whose next death would be its last runs *alone* on
its device: nobody is given up for what another did. When a suspect ends, whatever it was charged is forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import NamedTuple, Protocol

from broker.jobs import WaitingJob

#: Whether a job can run on a device at all; whether there is room for it there now.
Test = Callable[[WaitingJob, str], bool]


class Charged(Protocol):
    """What a job has behind it."""

    @property
    def deaths(self) -> int: ...

    @property
    def charges(self) -> int: ...


class DeviceState(NamedTuple):
    """What a device has: jobs, suspects among them, and whether one of these must be alone there."""

    name: str
    jobs: int = 0
    suspects: int = 0
    alone: bool = False


@dataclass(slots=True)
class Quarantine:
    """The suspects that wait, and the devices that are kept free for one at a time.

    Attributes:
        max_attempts: attempts that a job has.
        waiting: suspects by id, oldest first.
        reserved: devices that get no other jobs: a suspect runs alone there, or will once the device is empty.
        watched: whether suspects may be running.
    """

    max_attempts: int = 3
    waiting: dict[str, WaitingJob] = field(default_factory=dict[str, WaitingJob])
    reserved: set[str] = field(default_factory=set[str])
    watched: bool = False

    @property
    def active(self) -> bool:
        """Whether there is anything to decide."""
        return self.watched or bool(self.waiting) or bool(self.reserved)

    def add(self, job: WaitingJob) -> None:
        """A suspect waits."""
        self.waiting[job.job_id] = job

    def remove(self, job_id: str) -> None:
        """It does not wait any more."""
        self.waiting.pop(job_id, None)

    def of_batch(self, batch_id: str) -> list[WaitingJob]:
        """The suspects of one batch."""
        return [job for job in self.waiting.values() if job.batch_id == batch_id]

    def must_be_alone(self, job: Charged) -> bool:
        """Whether the next death of its worker would be the job's end."""
        return job.deaths > 0 and job.charges + 1 >= self.max_attempts

    def state_of(self, name: str, jobs: int, suspects: Collection[Charged]) -> DeviceState:
        """A device with so many jobs in flight, these suspects among them."""
        return DeviceState(name, jobs, len(suspects), any(map(self.must_be_alone, suspects)))

    def decide(self, devices: Sequence[DeviceState], can_hold: Test, fits: Test) -> list[tuple[WaitingJob, str]]:
        """Which suspects to dispatch now, and where to; ``reserved`` says which devices get nothing else.

        Args:
            devices: those that take jobs.
            can_hold: where no device can, any will do: its engine refuses the job.
            fits: asked of suspects that need not be alone.
        """
        placed = self._alone(devices, can_hold)
        free = [d for d in devices if d.name not in self.reserved]
        placed += self._in_groups(devices, free, can_hold, fits)
        for job, _ in placed:
            self.remove(job.job_id)
        self.watched = bool(placed) or any(device.suspects for device in devices)
        return placed

    def _alone(self, devices: Sequence[DeviceState], can_hold: Test) -> list[tuple[WaitingJob, str]]:
        """One job for each empty device, and further devices to be emptied: at most half of all, the emptiest first."""
        before, self.reserved = self.reserved, {device.name for device in devices if device.alone}
        most = max(1, len(devices) // 2)
        left = sorted((d for d in devices if not d.alone), key=lambda d: (d.name not in before, d.jobs, d.name))
        placed: list[tuple[WaitingJob, str]] = []
        for job in self.waiting.values():
            if len(self.reserved) >= most or not left:
                break
            if not self.must_be_alone(job):
                continue
            device = next((d for d in _able(job, left, devices, can_hold)), None)
            if device is None:
                continue
            left.remove(device)
            self.reserved.add(device.name)
            if device.jobs == 0:
                placed.append((job, device.name))
        return placed

    def _in_groups(
        self, devices: Sequence[DeviceState], free: Sequence[DeviceState], can_hold: Test, fits: Test
    ) -> list[tuple[WaitingJob, str]]:
        waiting = [job for job in self.waiting.values() if not self.must_be_alone(job)]
        most = max(1, isqrt(len(waiting) + sum(d.suspects for d in devices if not d.alone)))
        groups = {device.name: device.suspects for device in free}
        placed: list[tuple[WaitingJob, str]] = []
        for job in waiting:
            free = [d for d in free if groups[d.name] < most]
            if not free:
                break
            able = [d for d in _able(job, free, devices, can_hold) if fits(job, d.name)]
            if able:
                best = min(able, key=lambda d: (groups[d.name], d.jobs, d.name))
                groups[best.name] += 1
                placed.append((job, best.name))
        return placed


def _able(
    job: WaitingJob, free: Sequence[DeviceState], devices: Sequence[DeviceState], can_hold: Test
) -> Sequence[DeviceState]:
    """Those of the free devices that can run the job; all of them where none of all devices can."""
    if any(can_hold(job, device.name) for device in devices):
        return [device for device in free if can_hold(job, device.name)]
    return free
