"""The second-best plan, to compare the best one with. Pure.

One kind of machine does without engines of the degree that the best plan gives most of its devices there. Which kind,
and what it runs instead, is a program of its own (``planner.program``). Where that is large, what jobs and engines are
worth in the relaxation of the first one tells an upper bound for each kind of machine at once; and a plan that keeps
the other machines as they are is most often so near to it that no program is needed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from broker.length_class import LengthClass
from planner.cluster_plan import ClusterPlan
from planner.engine_worth import engine_worth
from planner.goal import Choice, Goal, Values
from planner.layouts import MachineType, with_degree_and_without
from planner.mixed_integer import NoTimeError
from planner.plan_making import plan_of
from planner.program import Program
from planner.program_rows import Column

#: The runner-up is only compared with.
_GAP = 1e-3
#: Kinds of machines that are tried, those with the highest bounds.
_TRIES = 3


def find_runner_up(
    types: Sequence[MachineType], best: Choice, classes: Sequence[LengthClass], program: Program, prove_s: float
) -> ClusterPlan | None:
    """The runner-up, within a thousandth of the best one; None where there is none, or the time is over.

    Args:
        types: the machines.
        best: the best plan.
        classes: jobs that some option can hold.
        program: it was the solution of this.
        prove_s: seconds after which no more is done to prove what was found.
    """
    changed = [*types]
    spared: dict[int, frozenset[int]] = {}
    for m, (device, units) in _main_degrees(types, best).items():
        changed[m], spared[m] = with_degree_and_without(types[m], device, units, classes)
    if not spared:
        return None
    near = None
    if program.values is not None:
        near = _by_values(changed, spared, best, classes, program.values)
        if near is not None and near.gap <= _GAP:
            return near
    gap = max(program.gap, _GAP)
    try:
        found = Program(changed, classes, gap, program.left_s, prove_s, spared).solve(Goal())
    except NoTimeError:
        return near
    exact = plan_of(changed, found, classes) if found is not None and found.rate > 0 else None
    if near is None or exact is None:
        return exact or near
    most = min(plan.jobs_per_s * (1 + plan.gap) for plan in (near, exact))
    better = max(near, exact, key=lambda plan: plan.jobs_per_s)
    left = max(most / better.jobs_per_s - 1, 0.0)
    return replace(better, gap=left, stopped=left > gap)


def _main_degrees(types: Sequence[MachineType], choice: Choice) -> dict[int, tuple[str, int]]:
    """The kind of device and degree that has most devices of each machine type."""
    devices: dict[int, Counter[tuple[str, int]]] = defaultdict(Counter)
    for (m, layout), machines in choice.layouts.items():
        for option, count in types[m].layouts[layout]:
            engine = types[m].options[option]
            devices[m][engine.device, engine.units] += machines * count * engine.units
    return {m: of_type.most_common(1)[0][0] for m, of_type in devices.items() if of_type}


def _by_values(
    types: Sequence[MachineType],
    spared: Mapping[int, frozenset[int]],
    best: Choice,
    classes: Sequence[LengthClass],
    values: Values,
) -> ClusterPlan | None:
    """The best plan in which one kind of machine is changed and all others are as they were; its gap is to what no
    runner-up exceeds."""
    known = _KnownValues(values, classes, types)
    tops = [max((known.layout(each, n) for n in range(len(each.layouts))), default=0.0) for each in types]
    total = sum(top * len(machines.names) for top, machines in zip(tops, types, strict=True))
    bounds: list[tuple[float, int, int | None]] = []
    for m, with_it in spared.items():
        worth = {n: known.layout(types[m], n) for n in range(len(types[m].layouts)) if n not in with_it}
        other = max(worth, key=worth.__getitem__, default=None)
        if other is None and types[m].machine.min_workers:
            continue
        lost = tops[m] - (worth[other] if other is not None else 0.0)
        bounds.append((total - lost * len(types[m].names), m, other))
    bounds.sort(key=lambda each: each[:2], reverse=True)
    found: ClusterPlan | None = None
    for _, m, other in bounds[:_TRIES]:
        plan = _changed(types, best, m, other, classes)
        if plan is None or plan.jobs_per_s <= (found.jobs_per_s if found is not None else 0.0):
            continue
        gap = max(bounds[0][0] / plan.jobs_per_s - 1, 0.0)
        found = replace(plan, gap=gap, stopped=gap > _GAP)
        if not found.stopped:
            break
    return found


def _changed(
    types: Sequence[MachineType], best: Choice, m: int, other: int | None, classes: Sequence[LengthClass]
) -> ClusterPlan | None:
    """As the best one, but with another layout on the machines of a type; None where it cannot hold all jobs."""
    layouts: dict[Column, int] = {column: count for column, count in best.layouts.items() if column[0] != m}
    if other is not None:
        layouts[m, other] = len(types[m].names)
    most = max(
        (types[n].options[option].kind.most_tokens for n, layout in layouts for option, _ in types[n].layouts[layout]),
        default=0,
    )
    if any(c.longest > most for c in classes):
        return None
    return plan_of(types, replace(best, layouts=layouts), classes)


class _KnownValues:
    """What engines are worth, of kinds that the program did not know, too."""

    def __init__(self, values: Values, classes: Sequence[LengthClass], types: Sequence[MachineType]) -> None:
        of_types = (m.options[option].kind for m in types for layout in m.layouts for option, _ in layout)
        new = [kind for kind in dict.fromkeys(of_types) if kind not in values.engines]
        work, longest = np.array([c.work for c in classes], dtype=float), np.array([c.longest for c in classes])
        worth = engine_worth(new, work, longest, values.jobs)
        self._engines = {**values.engines, **dict(zip(new, worth.tolist(), strict=True))}

    def layout(self, machines: MachineType, layout: int) -> float:
        """Jobs a second that a machine's engines are worth together."""
        return sum(count * self._engines[machines.options[option].kind] for option, count in machines.layouts[layout])
