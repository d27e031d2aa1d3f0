"""A plan for a cluster and what is expected of it, as plain values; and as what the supervisors carry out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker.fluid import solve
from broker.length_class import LengthClass
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.throughput import DeviceKind
from planner.configurations import EngineOption
from planner.inventory import Machine
from planner.reach import as_reached

_GIB = 1 << 30
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class PlannedMachine:
    """What a machine runs.

    Attributes:
        machine: which.
        engines: its engines, alike ones with their number; none where it stays idle.
        usable: whether there is anything that it could run.
    """

    machine: Machine
    engines: tuple[tuple[EngineOption, int], ...]
    usable: bool = True


@dataclass(frozen=True, slots=True)
class EngineShare:
    """What engines that are alike contribute together.

    Attributes:
        option: the engine.
        engines: how many.
        jobs_per_s: jobs of all of them.
        tokens_per_s: prompt and output tokens of all of them.
    """

    option: EngineOption
    engines: int
    jobs_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """What engines do together at best on a mix (``broker.fluid``).

    Attributes:
        jobs_per_s: of the mix.
        tokens_per_s: prompt and output tokens.
        of_kinds: tokens a second of each kind of engine, in the order in which they were given.
        jobs_of_kinds: jobs a second, likewise.
        unplaced: share of the jobs that no engine can hold, 0 to 1; they count nowhere.
    """

    jobs_per_s: float
    tokens_per_s: float
    of_kinds: tuple[float, ...]
    jobs_of_kinds: tuple[float, ...]
    unplaced: float


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A plan and what is expected of it.

    Attributes:
        machines: all of the inventory that it uses.
        shares: what its engines do, by kind.
        jobs_per_s: jobs of the mix.
        tokens_per_s: prompt and output tokens.
        price_per_hour: of the machines it uses; None where one's is not known.
        gap: how much better a plan could be that the search did not look for, as a share.
        stopped: whether the search had no time left to make that small.
    """

    machines: tuple[PlannedMachine, ...]
    shares: tuple[EngineShare, ...]
    jobs_per_s: float
    tokens_per_s: float
    price_per_hour: float | None
    gap: float = 0.0
    stopped: bool = False

    @property
    def price_per_million_tokens(self) -> float | None:
        """Price of a million tokens, prompt and output; None where it is not known."""
        return price_per_million(self.price_per_hour, self.tokens_per_s)

    def seconds(self, jobs: float) -> float:
        """Least time for so many jobs of the mix: no scheduler takes less."""
        return jobs / self.jobs_per_s if self.jobs_per_s else float("inf")

    def price(self, jobs: float) -> float | None:
        """Price of so many jobs, with every machine paid for until they are done."""
        return None if self.price_per_hour is None else self.price_per_hour * self.seconds(jobs) / _HOUR_S


def price_per_million(price_per_hour: float | None, tokens_per_s: float) -> float | None:
    """Price of a million tokens at this pace; None where it is not known."""
    if price_per_hour is None or not tokens_per_s:
        return None
    return price_per_hour / _HOUR_S / tokens_per_s * 1e6


def tokens_of(job: LengthClass) -> float:
    """Prompt and output tokens of a job of a class: its first token comes with the prefill."""
    return job.work.prompt + job.work.steps + 1.0


def throughput(classes: Sequence[LengthClass], kinds: Sequence[DeviceKind]) -> Throughput:
    """What engines do together at best, by the scheduler's own program."""
    jobs = np.array([c.jobs for c in classes], dtype=float)
    none = (0.0,) * len(kinds)
    found = solve(classes, kinds)
    if not found.seconds > 0:
        return Throughput(0.0, 0.0, none, none, 1.0)
    rates = found.jobs / found.seconds
    tokens = np.array([tokens_of(c) for c in classes]) @ rates
    left_out = float(jobs[list(found.unplaced)].sum() / jobs.sum())
    each = rates.sum(axis=0)
    return Throughput(
        float(rates.sum()), float(tokens.sum()), tuple(map(float, tokens)), tuple(map(float, each)), left_out
    )


def cluster_plan(
    machines: Sequence[PlannedMachine],
    classes: Sequence[LengthClass],
    gap: float = 0.0,
    *,
    stopped: bool = False,
    reached: bool = False,
) -> ClusterPlan:
    """The plan in which machines run these engines, with what they can do at best on a mix; or reach of that."""
    counts: Counter[EngineOption] = Counter()
    for planned in machines:
        for option, count in planned.engines:
            counts[option] += count
    options = list(counts)
    kinds = [replace(option.kind, count=counts[option]) for option in options]
    found = throughput(classes, as_reached(kinds, classes) if reached else kinds)
    shares = zip(options, found.jobs_of_kinds, found.of_kinds, strict=True)
    prices = [planned.machine.price_per_hour for planned in machines if planned.engines]
    known = [price for price in prices if price is not None]
    return ClusterPlan(
        tuple(machines),
        tuple(EngineShare(option, counts[option], jobs, tokens) for option, jobs, tokens in shares),
        found.jobs_per_s,
        found.tokens_per_s,
        sum(known) if len(known) == len(prices) and prices else None,
        gap,
        stopped,
    )


def expected_plan(plan: ClusterPlan, classes: Sequence[LengthClass]) -> ClusterPlan:
    """The same plan, with what its engines reach on the mix (``planner.reach``) and not what they can do at best."""
    return cluster_plan(plan.machines, classes, plan.gap, stopped=plan.stopped, reached=True)


def pool_plan(
    plan: ClusterPlan, model: Sequence[str], *, version: int, made: float, reason: str, utilization: float = 0.9
) -> PoolPlan:
    """The plan as the supervisors carry it out.

    Args:
        plan: what to run.
        model: the options of ``tokenyard worker`` that name the model, such as ``("--model", "/models/llama")``.
        version: of the pool's plan.
        made: when, in seconds since the epoch.
        reason: one line on why.
        utilization: share of a GPU's memory that engines use.
    """
    each = {share.option: share.tokens_per_s / share.engines for share in plan.shares}
    workers = [worker for m in plan.machines for worker in _workers(m, model, each, utilization)]
    return PoolPlan(
        version=version,
        made=made,
        workers=tuple(workers),
        tokens_per_s=plan.tokens_per_s,
        price_per_hour=plan.price_per_hour,
        reason=reason,
        min_workers=min((m.machine.min_workers for m in plan.machines), default=0),
        idle_hosts=tuple(m.machine.name for m in plan.machines if m.usable and not m.engines),
    )


def _workers(
    planned: PlannedMachine, model: Sequence[str], tokens_per_s: Mapping[EngineOption, float], utilization: float
) -> list[PlannedWorker]:
    """A machine's workers, the widest first, each with devices of its own that lie side by side."""
    free = {group.kind: 0 for group in planned.machine.groups}
    first_of = _first_devices(planned.machine)
    price, expected = planned.machine.price_per_hour, sum(tokens_per_s[option] * n for option, n in planned.engines)
    workers: list[PlannedWorker] = []
    for option, count in sorted(planned.engines, key=lambda engine: -engine[0].units):
        for _ in range(count):
            first = free[option.device]
            free[option.device] = first + option.units
            base = 0 if option.cpu else first_of[option.device]
            devices = tuple(range(base + first, base + first + option.units))
            kind = "cpu" if option.cpu else "gpu"
            workers.append(
                PlannedWorker(
                    name=f"{planned.machine.name}-{kind}{devices[0]}",
                    host=planned.machine.name,
                    options=(*model, *worker_options(option, devices, utilization)),
                    device=option.device,
                    devices=devices,
                    tensor_parallel=1 if option.cpu else option.units,
                    tokens_per_s=tokens_per_s[option],
                    price_per_hour=None if price is None or not expected else price * tokens_per_s[option] / expected,
                )
            )
    return workers


def _first_devices(machine: Machine) -> dict[str, int]:
    """Where the indices of each kind of GPU begin: as the inventory lists them, cores apart."""
    first: dict[str, int] = {}
    at = 0
    for group in machine.groups:
        first[group.kind] = at
        at += 0 if group.is_cpu else group.count
    return first


def worker_options(option: EngineOption, devices: Sequence[int], utilization: float) -> tuple[str, ...]:
    """The options of ``tokenyard worker`` that make this engine."""
    profile = option.kind.profile
    sized = ("--dtype", option.dtype, "--seats", str(profile.seats), "--context", str(option.kind.context_tokens))
    if option.cpu:
        cores = f"{devices[0]}-{devices[-1]}" if len(devices) > 1 else str(devices[0])
        return (*sized, "--cores", cores, "--kv-gib", f"{option.kv_bytes / _GIB:.2f}")
    spread = ("--tensor-parallel", str(option.units)) if option.units > 1 else ()
    return (*sized, *spread, "--gpu-memory-utilization", f"{utilization:g}")
