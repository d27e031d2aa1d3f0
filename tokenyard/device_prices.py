"""What devices cost, by the plan that put them there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.pool_plan import PoolPlan
from tokenyard.supervision import process_name

_HOUR_S = 3600.0


def missing_of(plan: PoolPlan, workers: Iterable[str]) -> list[str]:
    """Names of planned workers that are not among these: a supervisor's has a name that tells what it runs, too."""
    there = set(workers)
    return [each.name for each in plan.workers if each.name not in there and process_name(each) not in there]


def prices_of(plan: PoolPlan | None, workers: Iterable[str]) -> dict[str, float]:
    """The prices an hour of these workers; those that are in no plan, or not priced there, are missing."""
    known: dict[str, float] = {}
    for planned in plan.workers if plan is not None else ():
        if planned.price_per_hour is not None:
            known[planned.name] = known[process_name(planned)] = planned.price_per_hour
    return {name: known[name] for name in workers if name in known}


def cost_of(busy_s: Mapping[str, float], prices: Mapping[str, float]) -> float | None:
    """What the time of devices cost, by their prices an hour; None where one's is not known, or none took part.

    Args:
        busy_s: device -> seconds that it worked.
        prices: device -> price an hour.
    """
    if not busy_s or busy_s.keys() - prices.keys():
        return None
    return sum(seconds / _HOUR_S * prices[name] for name, seconds in busy_s.items())
