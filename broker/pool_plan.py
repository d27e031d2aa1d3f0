"""What a pool's hosts should run: the planner writes it, the supervisors carry it out. Pure."""

from __future__ import annotations

import msgspec

#: A plan is small: what is larger than this (bytes) is none.
MAX_PLAN_BYTES = 4 * 1024 * 1024


class PlannedWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """One worker process.

    Attributes:
        name: unique in the pool; the same name in the next plan means the same worker.
        host: name of the machine it runs on, as the inventory has it.
        options: its options of ``tokenyard worker``, but for its name, its pool and the server's address: what
            differs here makes it another worker, that replaces the one before.
        device: kind of its devices, for people.
        devices: indices of the machine's devices (GPUs) or of its cores that are its own.
        tensor_parallel: devices it runs over.
        tokens_per_s: prompt and output tokens a second that are expected of it on the planned mix (0: not known).
        price_per_hour: its part of what its machine costs, by the tokens that are expected of it; None where not known.
    """

    name: str
    host: str
    options: tuple[str, ...] = ()
    device: str = ""
    devices: tuple[int, ...] = ()
    tensor_parallel: int = 1
    tokens_per_s: float = 0.0
    price_per_hour: float | None = None


class PoolPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A pool's shape.

    Attributes:
        version: grows with each plan that is written.
        made: when, in seconds since the epoch on Redis' clock.
        workers: all that should run.
        tokens_per_s: expected of all together, prompt and output.
        price_per_hour: of all machines in use; None where not known.
        reason: one line on why this plan.
        min_workers: on each host at least so many run, also when nothing waits.
        idle_hosts: hosts that are to run nothing. What runs on a host that is neither here nor has workers stays.
    """

    version: int
    made: float
    workers: tuple[PlannedWorker, ...]
    tokens_per_s: float = 0.0
    price_per_hour: float | None = None
    reason: str = ""
    min_workers: int = 0
    idle_hosts: tuple[str, ...] = ()


def hosts_of(plan: PoolPlan) -> list[str]:
    """The hosts that should run something, each once, in the plan's order."""
    return list(dict.fromkeys(worker.host for worker in plan.workers))
