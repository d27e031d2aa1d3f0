"""From the counts that the program chose to a plan of machines, and why there may be none. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from broker.errors import UsageError
from broker.length_class import LengthClass
from planner.cluster_plan import ClusterPlan, PlannedMachine, cluster_plan
from planner.goal import Choice
from planner.layouts import MachineType


class NoPlanError(UsageError):
    """No configuration fits, or none reaches what was asked for."""


def placeable(types: Sequence[MachineType], classes: Sequence[LengthClass]) -> tuple[list[LengthClass], float]:
    """The classes that some option can hold, and the share of the jobs in the others.

    Raises:
        NoPlanError: there is none.
    """
    kinds = [
        machines.options[option].kind
        for machines in types
        for option in sorted({option for layout in machines.layouts for option, _ in layout})
    ]
    if not kinds:
        raise NoPlanError(no_plan(types))
    most = max(kind.most_tokens for kind in kinds)
    kept = [c for c in classes if c.jobs > 0 and c.longest <= most]
    if not kept:
        raise NoPlanError(f"no request fits: the roomiest configuration holds {most:,} tokens")
    total = sum(c.jobs for c in classes)
    return kept, 1 - sum(c.jobs for c in kept) / total


def plan_of(types: Sequence[MachineType], choice: Choice, classes: Sequence[LengthClass]) -> ClusterPlan:
    """Hand the layouts out to the hosts, in the order of both."""
    planned: list[PlannedMachine] = []
    of_type: dict[int, list[int]] = {}
    for (m, layout), count in sorted(choice.layouts.items()):
        of_type.setdefault(m, []).extend([layout] * count)
    for m, machines in enumerate(types):
        layouts = of_type.get(m, [])
        for i, (name, price) in enumerate(zip(machines.names, machines.prices, strict=True)):
            counts = machines.layouts[layouts[i]] if i < len(layouts) else ()
            engines = tuple((machines.options[option], count) for option, count in counts)
            machine = replace(machines.machine, name=name, price_per_hour=price)
            planned.append(PlannedMachine(machine, engines, usable=any(machines.layouts)))
    return cluster_plan(planned, classes, choice.gap, stopped=choice.stopped)


def no_plan(types: Sequence[MachineType]) -> str:
    """Of each machine the configuration that is nearest to fitting."""
    said: list[str] = []
    for machines in types:
        if machines.layouts and any(machines.layouts):
            continue
        nearest = min(machines.misfits, key=lambda misfit: misfit.short_bytes or 2**62, default=None)
        bounds = machines.machine.min_workers, machines.machine.max_workers
        reason = str(nearest) if nearest else "the model cannot be split over its devices"
        if machines.options:
            reason = f"no layout has {bounds[0]} to {bounds[1] or 'any number of'} workers"
        said.append(f"{machines.names[0]}: {reason}")
    return "no configuration fits: " + "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
