"""The plan that does a batch for least, by a deadline or within a budget. Pure.

A machine is paid for from the start until the whole batch is done; one that is not used costs nothing. The price of a
job is price over rate, a ratio that Dinkelbach's method (1967) makes least by a few programs without ratios: first by
their relaxations, which bounds what any plan costs, then by the programs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from broker.length_class import LengthClass
from planner.cluster_plan import ClusterPlan
from planner.goal import Choice, Goal
from planner.layouts import MachineType
from planner.mixed_integer import NoTimeError
from planner.plan_making import NoPlanError, no_plan, placeable, plan_of
from planner.program import Program
from planner.search import GAP, LIMIT_S, NO_TIME

#: Dinkelbach's method ends in a few rounds; it gains this share at least in each.
_ROUNDS, _LEAST_GAIN = 50, 1e-9
#: A relaxed price whose goal is this share of it from zero is the least one.
_CLOSE = 1e-7
#: A guess at the price of the best machine is raised by this factor.
_DEARER = 1.05
#: A plan within a budget is taken where none is faster by more than this share.
_NEARLY = 0.05
#: Once a plan is found, no more is done to prove that none is cheaper, or faster within a budget, after this (seconds).
_PROVE_S = 3.0
_HOUR_S = 3600.0


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

    Args:
        types: machines with their layouts.
        classes: the mix.
        jobs: how many jobs of it.
        deadline_s: seconds in which all must be done, at the most the machines can do.
        budget: most that it may cost.
        gap: see ``planner.search.search``.
        limit_s: seconds to search; then the best found by then is the plan, ``stopped``, with the gap that is left.

    Raises:
        NoPlanError: a price is not known, no plan is fast and cheap enough (says by how much), or none was found in
            time.
    """
    if missing := [machines.names[-1] for machines in types if machines.prices[-1] is None]:
        raise NoPlanError(f"price_per_hour of {missing[0]} is not known: a price cannot be reckoned without")
    kept, left_out = placeable(types, classes)
    program = Program(types, kept, gap, limit_s, _PROVE_S)
    try:
        found = _cheapest(types, program, jobs * (1 - left_out), deadline_s, budget)
    except NoTimeError:
        raise NoPlanError(NO_TIME.format(limit_s)) from None
    return plan_of(types, found, kept)


def _cheapest(
    types: Sequence[MachineType], program: Program, todo: float, deadline_s: float | None, budget: float | None
) -> Choice:
    fastest = program.solve(Goal())
    if fastest is None or not fastest.rate > 0:
        raise NoPlanError(no_plan(types))
    least_rate = todo / deadline_s if deadline_s else 0.0
    if fastest.rate < least_rate * (1 - 1e-9):
        if fastest.stopped:
            raise NoTimeError
        needed, allowed = todo / fastest.rate, deadline_s or 0.0
        raise NoPlanError(
            f"no plan is done in {allowed:,.0f} s: all machines together need {needed:,.0f} s, "
            f"{needed - allowed:,.0f} s more"
        )
    if deadline_s is None and budget is not None:
        within = _within(program, fastest, budget * _HOUR_S / todo)
        if within is not None:
            return within
    least = least_price(program, fastest, min(least_rate, fastest.rate))
    cost = least.price_per_hour * todo / least.rate / _HOUR_S
    if budget is not None and cost > budget * (1 + 1e-9):
        sure = "costs" if not least.stopped else "that was found in time costs"
        raise NoPlanError(
            f"no plan {sure} {budget:,.2f} or less: the cheapest costs {cost:,.2f}, {cost - budget:,.2f} more"
        )
    if deadline_s is not None or budget is None:
        return least
    return fastest_within(program, least, fastest.rate + fastest.short, budget * _HOUR_S / todo)


def _within(program: Program, fastest: Choice, most_price_a_rate: float) -> Choice | None:
    """The fastest plan of that price for each job a second; None where none was found, or none that is nearly best."""
    if fastest.price_per_hour <= most_price_a_rate * fastest.rate:
        return fastest
    try:
        found = program.solve(Goal(most_price_a_rate=most_price_a_rate))
    except NoTimeError:
        return None
    return found if found is not None and found.rate > 0 and found.gap <= _NEARLY else None


def fastest_within(program: Program, least: Choice, most_rate: float, most_price_a_rate: float) -> Choice:
    """The fastest plan of that price for each job a second; the cheapest one is no slower than what is found in time.

    Args:
        program: the machines.
        least: the plan of the least price for each job a second.
        most_rate: no plan is faster, jobs a second.
        most_price_a_rate: most price an hour for each job a second.
    """
    try:
        within = program.solve(Goal(most_price_a_rate=most_price_a_rate))
    except NoTimeError:
        return replace(least, gap=most_rate / least.rate - 1, stopped=True)
    return within if within is not None and within.rate >= least.rate else least


def least_price(program: Program, start: Choice, least_rate: float) -> Choice:
    """The plan of the least price for each job a second, among those of a rate.

    Every round tells a bound, too: with ``ratio * rate - price <= most`` for all plans, none has a price for each job a
    second below ``ratio - most / rate``, where ``rate`` is the least there may be, or the most where ``most`` is below
    zero.

    Args:
        program: the machines.
        start: the fastest plan.
        least_rate: jobs a second that it must reach.
    """
    best, most_rate, prove_s = start, start.rate + start.short, _PROVE_S
    bound, ratio = _relaxed_price(program, start, least_rate)
    first = ratio < start.price_per_hour / start.rate  # the relaxation's: what it takes to be proven comes next
    for _ in range(_ROUNDS):
        goal = Goal(rate_weight=ratio, price_weight=1.0, least_rate=least_rate, of_value=best.price_per_hour)
        begun_s = program.left_s
        try:
            found = program.solve(goal, 0.0 if first else prove_s)
        except NoTimeError:
            return _stopped(best, bound)
        if found is None or not found.rate > 0:
            if not first:
                return replace(best, gap=0.0)
            bound, ratio, first = max(bound, ratio), best.price_per_hour / best.rate, False
            continue
        prove_s -= begun_s - program.left_s if begun_s < float("inf") else 0.0
        most = ratio * found.rate - found.price_per_hour + found.short
        bound = max(bound, _bound(ratio, most, least_rate, most_rate))
        least, price = best.price_per_hour / best.rate, found.price_per_hour / found.rate
        better = price < least * (1 - _LEAST_GAIN)
        best = found if better else best
        if best.price_per_hour <= 0 or 1 - bound * best.rate / best.price_per_hour <= program.gap:
            return replace(best, gap=max(1 - bound * best.rate / best.price_per_hour, 0.0), stopped=False)
        if not better and ratio >= least and not found.stopped:
            return replace(best, gap=found.short / best.price_per_hour, stopped=False)
        if prove_s <= 0 or (found.stopped and not better and not first):
            return _stopped(best, bound)
        ratio, first = best.price_per_hour / best.rate, False
    return best


def _bound(ratio: float, most: float, least_rate: float, most_rate: float) -> float:
    """No plan has a lower price for each job a second, where ``ratio * rate - price <= most`` for all."""
    if most <= 0:
        return ratio - most / most_rate
    return ratio - most / least_rate if least_rate > 0 else 0.0


def _relaxed_price(program: Program, start: Choice, least_rate: float) -> tuple[float, float]:
    """What no plan's price for each job a second is below, and the one to begin with: that of ``start`` where nothing
    is known."""
    bound, ratio = 0.0, start.price_per_hour / start.rate
    first = ratio
    guess = program.price_guess(least_rate)
    if guess is not None and least_rate <= 0:
        guess *= _DEARER  # else no machine at all is best
    if guess is not None and guess < ratio:  # a guess below the least one tells a bound, too
        found = program.relax(Goal(rate_weight=guess, price_weight=1.0, least_rate=least_rate))
        if found is not None and found.rate > 0:
            bound = max(_bound(guess, found.most, least_rate, start.rate + start.short), 0.0)
            ratio = min(ratio, found.price_per_hour / found.rate)
    for _ in range(_ROUNDS):
        found = program.relax(Goal(rate_weight=ratio, price_weight=1.0, least_rate=least_rate))
        if found is None:
            return bound, first
        most = max(found.most, 0.0)
        if most <= _CLOSE * ratio * start.rate:
            return ratio * (1 - _CLOSE) if least_rate <= 0 else _bound(ratio, most, least_rate, start.rate), ratio
        bound = max(bound, _bound(ratio, most, least_rate, start.rate))
        if not found.rate > 0 or found.price_per_hour / found.rate >= ratio:
            break
        ratio = found.price_per_hour / found.rate
    return bound, ratio


def _stopped(best: Choice, bound: float) -> Choice:
    """The best that was found in time; ``bound`` is a price for each job a second that no plan is below."""
    gap = 1 - bound * best.rate / best.price_per_hour if best.price_per_hour else 0.0
    return replace(best, gap=max(gap, 0.0), stopped=True)
