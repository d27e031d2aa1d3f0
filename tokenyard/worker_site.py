"""Where a supervisor's workers run, and what a plan means there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from broker.pool_plan import PlannedWorker, PoolPlan
from broker.worker_options import names_cores, with_model
from tokenyard.child_process import ChildProcess
from tokenyard.supervision import process_name


class Child(Protocol):
    """A worker process, here or elsewhere."""

    @property
    def pid(self) -> int:
        """Its process id where it runs; below zero as long as it has none."""
        ...

    @property
    def log_at(self) -> str:
        """Where its log is, for people."""
        ...

    @property
    def waits_for_room(self) -> bool:
        """Whether it will start once others have gone."""
        ...

    async def start(self) -> None:
        """Start it; it may begin later."""
        ...

    async def wait(self) -> int:
        """Wait for its end; returns its exit code, below zero where it was killed."""
        ...

    def terminate(self) -> None:
        """Ask it to end: it drains."""
        ...

    async def stop(self, timeout_s: float = ...) -> None:
        """Make it end, at the latest some time after ``timeout_s`` seconds."""
        ...

    def how_it_ended(self) -> str:
        """Why, in one line."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSite:
    """A host, or something that has many.

    Attributes:
        child_of: makes the process of a planned worker; it is not started yet.
        view: the plan as it is meant here. Raises UsageError where it cannot be carried out here.
        cores: cores that a worker may name are below this.
        own_devices: whether the plan says which devices each worker has; False where they are given out elsewhere.
        room_s: so many seconds a worker may wait for room before one that is to go makes room for it.
    """

    child_of: Callable[[PlannedWorker], Child]
    view: Callable[[PoolPlan], PoolPlan]
    cores: int
    own_devices: bool = True
    room_s: float = 0.0


def host_site(models: Sequence[str], log_dir: Path, environment: Mapping[str, str], descriptor: int) -> WorkerSite:
    """This host.

    Args:
        models: models that may run here; the first where a plan names none.
        log_dir: where the workers' logs are.
        environment: what workers have beside ours.
        descriptor: the host's lock, which workers hold, too.
    """

    def child_of(planned: PlannedWorker) -> Child:
        name = process_name(planned)
        return ChildProcess(
            name,
            ["worker", "--name", name, *with_model(planned.options, models)],
            log_dir=log_dir,
            environment={**environment, **_visible_devices(planned)},
            keep_open=[descriptor],
        )

    return WorkerSite(child_of, view=lambda plan: plan, cores=os.cpu_count() or 1)


def _visible_devices(planned: PlannedWorker) -> dict[str, str]:
    """What keeps a worker to its own GPUs; one that is given cores keeps to these by itself."""
    if not planned.devices or names_cores(planned.options):
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, planned.devices))}
