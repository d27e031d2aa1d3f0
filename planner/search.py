"""The best configuration of every machine at once. Pure.

Exact, up to ``GAP``: machines that are alike are counted (``planner.program``), what cannot be best is left out before
(``planner.layouts``), and the rest is solved by branch and bound with HiGHS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker.length_class import LengthClass
from planner.cluster_plan import ClusterPlan
from planner.goal import Goal
from planner.layouts import MachineType
from planner.mixed_integer import NoTimeError
from planner.plan_making import NoPlanError, no_plan, placeable, plan_of
from planner.program import Program
from planner.runner_up import find_runner_up

__all__ = ["GAP", "LIMIT_S", "NO_TIME", "NoPlanError", "SearchResult", "search"]

#: A plan within this share of the best is taken for the best: far less than any prediction is true to.
GAP = 1e-4
#: A search ends after so long (seconds of HiGHS' own clock).
LIMIT_S = 60.0
#: Once a plan of the highest throughput, or a runner-up, is found, no more is done to prove it after this (seconds).
_PROVE_S = 4.0
NO_TIME = "no plan was found in {:g} s: give fewer --seats or --dtype, or plan for some of the machines"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: the plan of the highest throughput.
        runner_up: the best one in which one kind of machine does without engines of the degree that ``best`` gives
            most of its devices there, within a thousandth; None where there is no other, or none was found in time.
            Where it is the faster one, as the best is near to the best alone, the two change places.
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
        raise NoPlanError(NO_TIME.format(limit_s)) from None
    if best is None:
        raise NoPlanError(no_plan(types))
    first, second = plan_of(types, best, kept), find_runner_up(types, best, kept, program, _PROVE_S)
    if second is not None and second.jobs_per_s > first.jobs_per_s:
        most = first.jobs_per_s * (1 + first.gap)
        first, second = (replace(plan, gap=max(most / plan.jobs_per_s - 1, 0.0)) for plan in (second, first))
        first = replace(first, stopped=first.gap > gap)
    return SearchResult(first, second, left_out)
