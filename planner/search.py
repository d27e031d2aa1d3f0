"""The best configuration of every machine at once. Pure.

Exact, up to ``GAP``: machines that are alike are counted (``planner.program``), what cannot be best is left out before
(``planner.layouts``), and the rest is solved by branch and bound with HiGHS.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from broker.errors import UsageError
from broker.fluid import LengthClass
from broker.throughput import Work
from planner.cluster_plan import ClusterPlan, PlannedMachine, cluster_plan
from planner.layouts import MachineType, with_degree_and_without
from planner.mixed_integer import NoTimeError
from planner.program import Before, Choice, Column, Goal, Program

#: A plan within this share of the best is taken for the best: far less than any prediction is true to.
GAP = 1e-4
#: The runner-up is only compared with.
_RUNNER_UP_GAP = 1e-3
#: Dinkelbach's method ends in a few rounds; it gains this share at least in each.
_ROUNDS, _LEAST_GAIN = 50, 1e-9
_FEWER = "give fewer --seats or --dtype, or plan for some of the machines"
#: A price is searched for so long (seconds of HiGHS' own clock).
LIMIT_S = 60.0
#: Once a plan of the highest throughput, or a runner-up, is found, no more is done to prove it after this (seconds).
_PROVE_S = 4.0
_HOUR_S = 3600.0


class NoPlanError(UsageError):
    """No configuration fits, or none reaches what was asked for."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: the plan of the highest throughput.
        runner_up: the best one in which one kind of machine does without engines of the degree that ``best`` gives
            most of its devices there, within a thousandth; None where there is no other.
        left_out: share of the jobs that no configuration of any machine can hold, 0 to 1.
    """

    best: ClusterPlan
    runner_up: ClusterPlan | None
    left_out: float


def search(
    types: Sequence[MachineType], classes: Sequence[LengthClass], gap: float = GAP, limit_s: float = LIMIT_S
) -> SearchResult:
    """The plan of the highest throughput on a mix, and the runner-up.

    Args:
        types: machines with their layouts.
        classes: the mix; what no configuration can hold is left out.
        gap: a plan this near to the best is as good, as a share of its throughput.
        limit_s: seconds to search for both; then the best found by then is the plan, ``stopped``, with the gap that is
            left.

    Raises:
        NoPlanError: no machine can run the model, or no job of the mix; or nothing was found in time.
    """
    kept, left_out = placeable(types, classes)
    program = Program(types, kept, gap, limit_s, _PROVE_S)
    try:
        best = program.solve(Goal())
    except NoTimeError:
        raise NoPlanError(f"no plan was found in {limit_s:g} s: {_FEWER}") from None
    if best is None:
        raise NoPlanError(_no_plan(types))
    return SearchResult(_plan(types, best, kept), _runner_up(types, best, kept, gap, program), left_out)


def _runner_up(
    types: Sequence[MachineType], best: Choice, classes: Sequence[LengthClass], gap: float, program: Program
) -> ClusterPlan | None:
    """One program that says, too, which kind of machine does without the degree; None where the time is over."""
    changed = [*types]
    spared: dict[int, frozenset[int]] = {}
    for m, (device, units) in _main_degrees(types, best).items():
        changed[m], spared[m] = with_degree_and_without(types[m], device, units, classes)
    if not spared:
        return None
    spare, start = _without_degree(changed, spared, best, classes)
    before = Before(program, best.rate + best.short, start, spare)
    gap = max(gap, _RUNNER_UP_GAP)
    try:
        found = Program(changed, classes, gap, program.left_s, _PROVE_S, spared).solve(Goal(), before)
    except NoTimeError:  # what it was to begin with is a plan, too
        rough = _plan(changed, Choice(start, 0.0, 0.0, 0.0), classes)
        if not rough.jobs_per_s > 0:
            return None
        return replace(rough, gap=max(before.most_rate / rough.jobs_per_s - 1, 0.0), stopped=True)
    return _plan(changed, found, classes) if found is not None and found.rate > 0 else None


def _without_degree(
    types: Sequence[MachineType],
    spared: Mapping[int, frozenset[int]],
    best: Choice,
    classes: Sequence[LengthClass],
) -> tuple[int, dict[Column, int]]:
    """A second plan to begin with: as the best, but for the type of machine that loses least by it, at a guess."""
    work = _mean_work(classes)
    found: list[tuple[float, int, dict[Column, int]]] = []
    for m, with_it in spared.items():
        pace = [_pace(types[m], layout, work) for layout in range(len(types[m].layouts))]
        mine = {layout: count for (n, layout), count in best.layouts.items() if n == m}
        others = [layout for layout in range(len(pace)) if layout not in with_it]
        start = {column: count for column, count in best.layouts.items() if column[0] != m}
        loss = sum(count * pace[layout] for layout, count in mine.items())
        if others:
            other = max(others, key=pace.__getitem__)
            start[m, other] = sum(mine.values())
            loss -= pace[other] * sum(mine.values())
        found.append((loss, m, start))
    _, spare, start = min(found, key=lambda each: each[:2])
    return spare, start


def _mean_work(classes: Sequence[LengthClass]) -> Work:
    jobs = sum(c.jobs for c in classes)
    columns = zip(*(c.work for c in classes), strict=True)
    return Work(*(sum(c.jobs * each for c, each in zip(classes, column, strict=True)) / jobs for column in columns))


def _pace(machines: MachineType, layout: int, mean: Work) -> float:
    """Jobs a second of a layout's engines, each for itself and on the mean job."""
    pace = 0.0
    for option, count in machines.layouts[layout]:
        profile = machines.options[option].kind.profile
        pace += count / max(profile.own_seconds(mean) + profile.decode_d * profile.steps_needed(mean), 1e-12)
    return pace


def cheapest(
    types: Sequence[MachineType],
    classes: Sequence[LengthClass],
    jobs: float,
    *,
    deadline_s: float | None = None,
    budget: float | None = None,
    gap: float = GAP,
    limit_s: float = LIMIT_S,
) -> ClusterPlan:
    """The machines and what they run for a batch: cheapest where there is a deadline, else fastest within the budget.

    A machine is paid for from the start until the whole batch is done; one that is not used costs nothing. The price of
    a job is price over rate, a ratio that Dinkelbach's method (1967) makes least by a few programs without ratios.

    Args:
        types: machines with their layouts.
        classes: the mix.
        jobs: how many jobs of it.
        deadline_s: seconds in which all must be done, at the most the machines can do.
        budget: most that it may cost.
        gap: see ``search``.
        limit_s: seconds to search; then the best found by then is the plan, ``stopped``, with the gap that is left.

    Raises:
        NoPlanError: a price is not known, no plan is fast and cheap enough (says by how much), or none was found in
            time.
    """
    if missing := [machines.names[-1] for machines in types if machines.prices[-1] is None]:
        raise NoPlanError(f"price_per_hour of {missing[0]} is not known: a price cannot be reckoned without")
    kept, left_out = placeable(types, classes)
    todo = jobs * (1 - left_out)
    program = Program(types, kept, gap, limit_s)
    try:
        found = _cheapest(types, program, todo, deadline_s, budget)
    except NoTimeError:
        raise NoPlanError(f"no plan was found in {limit_s:g} s: {_FEWER}") from None
    return _plan(types, found, kept)


def _cheapest(
    types: Sequence[MachineType], program: Program, todo: float, deadline_s: float | None, budget: float | None
) -> Choice:
    fastest = program.solve(Goal())
    if fastest is None or not fastest.rate > 0:
        raise NoPlanError(_no_plan(types))
    least_rate = todo / deadline_s if deadline_s else 0.0
    if fastest.rate < least_rate * (1 - 1e-9):
        if fastest.stopped:
            raise NoTimeError
        needed, allowed = todo / fastest.rate, deadline_s or 0.0
        raise NoPlanError(
            f"no plan is done in {allowed:,.0f} s: all machines together need {needed:,.0f} s, "
            f"{needed - allowed:,.0f} s more"
        )
    least = least_price(program, fastest, min(least_rate, fastest.rate))
    cost = _price(least, todo)
    if budget is not None and cost > budget * (1 + 1e-9):
        sure = "costs" if not least.stopped else "that was found in time costs"
        raise NoPlanError(
            f"no plan {sure} {budget:,.2f} or less: the cheapest costs {cost:,.2f}, {cost - budget:,.2f} more"
        )
    if deadline_s is not None or budget is None:
        return least
    return fastest_within(program, least, fastest.rate + fastest.short, budget * _HOUR_S / todo)


def fastest_within(program: Program, least: Choice, most_rate: float, most_price_a_rate: float) -> Choice:
    """The fastest plan of that price for each job a second; the cheapest one is no slower than what is found in time.

    Args:
        most_rate: no plan is faster, jobs a second.
    """
    try:
        within = program.solve(Goal(most_price_a_rate=most_price_a_rate))
    except NoTimeError:
        return replace(least, gap=most_rate / least.rate - 1, stopped=True)
    return within if within is not None and within.rate >= least.rate else least


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
        raise NoPlanError(_no_plan(types))
    kept = [c for c in classes if c.jobs > 0 and any(kind.can_hold(c.longest) for kind in kinds)]
    if not kept:
        most = max(min(kind.profile.kv_tokens, kind.context_tokens) for kind in kinds)
        raise NoPlanError(f"no request fits: the roomiest configuration holds {most:,} tokens")
    total = sum(c.jobs for c in classes)
    return kept, 1 - sum(c.jobs for c in kept) / total


def least_price(program: Program, start: Choice, least_rate: float) -> Choice:
    """The plan of the least price for each job a second, among those of a rate (Dinkelbach).

    Where the time runs out, a round still tells a bound: with ``ratio * rate - price <= most`` for all plans, none has
    a price for each job a second below ``ratio - most / least_rate``.
    """
    best, bound = start, 0.0
    for _ in range(_ROUNDS):
        ratio = best.price_per_hour / best.rate
        goal = Goal(rate_weight=ratio, price_weight=1.0, least_rate=least_rate, of_value=best.price_per_hour)
        try:
            found = program.solve(goal)
        except NoTimeError:
            return _stopped(best, bound)
        if found is None or not found.rate > 0:
            return replace(best, gap=0.0)
        if least_rate > 0:
            most = ratio * found.rate - found.price_per_hour + found.short
            bound = max(bound, ratio - most / least_rate)
        if found.price_per_hour / found.rate < ratio * (1 - _LEAST_GAIN):
            best = found
        elif not found.stopped:
            return replace(best, gap=found.short / best.price_per_hour if best.price_per_hour else 0.0)
        if found.stopped:
            return _stopped(best, bound)
    return best


def _stopped(best: Choice, bound: float) -> Choice:
    """The best that was found in time; ``bound`` is a price for each job a second that no plan is below."""
    gap = 1 - bound * best.rate / best.price_per_hour if best.price_per_hour else 0.0
    return replace(best, gap=max(gap, 0.0), stopped=True)


def _price(choice: Choice, jobs: float) -> float:
    return choice.price_per_hour * jobs / choice.rate / _HOUR_S


def _main_degrees(types: Sequence[MachineType], choice: Choice) -> dict[int, tuple[str, int]]:
    """The kind of device and degree that has most devices of each machine type."""
    devices: dict[int, Counter[tuple[str, int]]] = defaultdict(Counter)
    for (m, layout), machines in choice.layouts.items():
        for option, count in types[m].layouts[layout]:
            engine = types[m].options[option]
            devices[m][engine.device, engine.units] += machines * count * engine.units
    return {m: of_type.most_common(1)[0][0] for m, of_type in devices.items() if of_type}


def _plan(types: Sequence[MachineType], choice: Choice, classes: Sequence[LengthClass]) -> ClusterPlan:
    """Hand the layouts out to the hosts, in the order of both."""
    planned: list[PlannedMachine] = []
    for m, machines in enumerate(types):
        layouts = [layout for (n, layout), count in sorted(choice.layouts.items()) if n == m for _ in range(count)]
        for i, (name, price) in enumerate(zip(machines.names, machines.prices, strict=True)):
            counts = machines.layouts[layouts[i]] if i < len(layouts) else ()
            engines = tuple((machines.options[option], count) for option, count in counts)
            machine = replace(machines.machine, name=name, price_per_hour=price)
            planned.append(PlannedMachine(machine, engines, usable=any(machines.layouts)))
    return cluster_plan(planned, classes, choice.gap, stopped=choice.stopped)


def _no_plan(types: Sequence[MachineType]) -> str:
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
