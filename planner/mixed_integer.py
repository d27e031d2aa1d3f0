"""A mixed-integer program solved by HiGHS, large ones by way of smaller ones. Pure.

Of a large program most time goes into columns that no good solution uses. So its linear relaxation is solved first, by
an interior point method: its value bounds what any solution can reach, and its reduced costs tell how much a column
would have to become cheaper to be of use. Then the program is solved with ever more of its columns: with the counts
that the relaxation uses, to be rounded; with all counts; with all columns. What one of these finds is proven for the
whole where it comes near enough to the bound.

Where a program much like it was solved before, that tells the columns of use, the bound and where to begin: then there
is no relaxation to be solved first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import highspy
import numpy as np
from numpy.typing import NDArray

from planner.sparse_rows import Array

#: HiGHS' word for a solution that keeps to all rows.
_FEASIBLE = 2
#: A count below this is none.
_ZERO = 1e-6
#: What is further from the best than this is no solution yet: the search goes on while there is time.
_USEFUL = 0.05
_ENDED = (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kObjectiveTarget)
_NONE = (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)

Mask = NDArray[np.bool_]


class NoTimeError(Exception):
    """The time ran out before any solution was found."""


@dataclass(frozen=True, slots=True)
class Terms:
    """When a search ends.

    Attributes:
        rel_gap: a solution this near to the best is as good, as a share of its value.
        abs_gap: the same in the units of the objective; whichever is larger counts.
        limit_s: seconds until it ends in any case.
        prove_s: seconds after which no more is done to prove a solution that was found.
    """

    rel_gap: float
    abs_gap: float
    limit_s: float
    prove_s: float = float("inf")

    def allowed(self, objective: float) -> float:
        """How far from the best a solution of this value may be."""
        return max(self.abs_gap, self.rel_gap * abs(objective))

    def after(self, seconds: float) -> Terms:
        """What is left after so long."""
        return replace(self, limit_s=max(self.limit_s - seconds, 0.0), prove_s=max(self.prove_s - seconds, 0.0))


@dataclass(frozen=True, slots=True)
class Solution:
    """What was found.

    Attributes:
        values: of the columns.
        objective: their value; the least is sought.
        bound: no solution has a lower one.
        seconds: what it took.
        stopped: whether the time ran out before the gap was as small as asked for.
        useful: columns that may be of use, by the relaxation; None where that was not solved.
    """

    values: Array
    objective: float
    bound: float
    seconds: float
    stopped: bool
    useful: Mask | None = None

    @property
    def short(self) -> float:
        """How far a better one could at most be."""
        return max(self.objective - self.bound, 0.0)

    @property
    def gap(self) -> float:
        """The same as a share of the objective."""
        return self.short / abs(self.objective) if self.objective else float(self.short > 0)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a program before tells of this one.

    Attributes:
        useful: columns that may be of use.
        bound: no solution has a lower value.
        start: values of the integer columns in a solution to begin with.
    """

    useful: Mask
    bound: float
    start: Array


@dataclass(frozen=True, slots=True)
class _Relaxation:
    """What the linear relaxation tells: the bound, what each column costs beyond its worth, and which may be of use."""

    bound: float
    costs: Array
    useful: Mask
    used: Mask


def solve_whole(lp: highspy.HighsLp, terms: Terms) -> Solution | None:
    """The best solution, or the best found in time; None where there is none.

    Raises:
        NoTimeError: the time ran out before anything was found.
    """
    first_s = min(terms.prove_s, terms.limit_s)
    try:
        found = _solve(lp, terms, first_s)
        if found is None or not found.stopped or found.gap <= _USEFUL or first_s >= terms.limit_s:
            return found
    except NoTimeError:
        if first_s >= terms.limit_s:
            raise
    found = _solve(lp, terms, terms.limit_s - first_s)
    return None if found is None else replace(found, seconds=found.seconds + first_s)


def solve_large(
    lp: highspy.HighsLp, priced: NDArray[np.intp], near: float, terms: Terms, hint: Hint | None = None
) -> Solution | None:
    """The same for a program with many continuous columns.

    Args:
        lp: the program; its columns' bounds are as before in the end.
        priced: of each of its first columns the row in which its entry is 1 and whose dual value is what it is worth;
            these are the columns of which some may be left out.
        near: a column whose reduced cost is above this share of its worth is left out at first.
        terms: when to end.
        hint: what is known of it already.

    Raises:
        NoTimeError: the time ran out before anything was found.
    """
    if hint is not None:
        hinted, spent = _by_hint(lp, hint, terms)
        if hinted is not None:
            return hinted
        terms = terms.after(spent)
    relaxed, spent = _relax(lp, priced, near, terms.limit_s)
    if relaxed is None:
        return solve_whole(lp, terms.after(spent))
    upper = np.array(lp.col_upper_)
    try:
        found = _in_steps(lp, relaxed, terms, spent)
    finally:
        lp.col_upper_ = upper
    return None if found is None else replace(found, useful=relaxed.useful)


def _by_hint(lp: highspy.HighsLp, hint: Hint, terms: Terms) -> tuple[Solution | None, float]:
    """A solution near to the bound, or near enough when the time is over, where the columns of use have one; and the
    seconds that it took to look.

    Raises:
        NoTimeError: the time for a proof was over before anything was found.
    """
    limit_s = min(terms.prove_s, terms.limit_s)
    lower, upper = np.array(lp.col_lower_), np.array(lp.col_upper_)
    lp.col_upper_ = np.where(hint.useful, upper, lower)
    try:
        found = _solve(lp, terms, limit_s, hint)
    finally:
        lp.col_upper_ = upper
    if found is None:
        return None, 0.0
    found = replace(found, bound=min(hint.bound, found.objective))
    proven = found.short <= terms.allowed(found.objective)
    enough = proven or (found.stopped and found.gap <= _USEFUL)
    return (replace(found, stopped=not proven) if enough else None), found.seconds


def _in_steps(lp: highspy.HighsLp, relaxed: _Relaxation, terms: Terms, spent: float) -> Solution | None:
    """With ever more columns, until what is found is near enough to the bound or has taken long enough."""
    lower, upper = np.array(lp.col_lower_), np.array(lp.col_upper_)
    integer = np.array([kind == highspy.HighsVarType.kInteger for kind in lp.integrality_])
    every = np.ones(len(integer), dtype=bool)
    best: Solution | None = None
    for columns in (relaxed.useful & (relaxed.used | ~integer), relaxed.useful, every):
        left = terms.after(spent)
        limit_s = left.prove_s if best is not None and best.gap <= _USEFUL else left.limit_s
        if best is not None and limit_s <= 0:
            break
        # A whole number of what costs more than is missing to the bound is in no better solution.
        worse = integer & (relaxed.costs > (float("inf") if best is None else best.short))
        lp.col_upper_ = np.where(columns & ~worse, upper, lower)
        try:
            found = _solve(lp, terms, limit_s)
        except NoTimeError:
            if best is None and columns is every:
                raise
            spent += limit_s
            continue
        spent += found.seconds if found is not None else 0.0
        best = _better(best, found, relaxed.bound, whole=columns is every)
        if best is not None and best.short <= terms.allowed(best.objective):
            break
    if best is None:
        return None
    return replace(best, seconds=spent, stopped=best.short > terms.allowed(best.objective))


def _better(best: Solution | None, found: Solution | None, bound: float, *, whole: bool) -> Solution | None:
    """The better of two, with what is known of all: of the whole program, what was left out cannot be better than
    ``best``."""
    least = best.objective if best is not None else float("inf")
    if whole:
        bound = max(bound, min(least, found.bound if found is not None else float("inf")))
    if found is None or found.objective >= least:
        return best if best is None else replace(best, bound=bound)
    return replace(found, bound=bound)


def _relax(
    lp: highspy.HighsLp, priced: NDArray[np.intp], near: float, limit_s: float
) -> tuple[_Relaxation | None, float]:
    """The relaxation, None where it was not solved; and the seconds that it took."""
    solver = _solver(lp, limit_s)
    solver.setOptionValue("solve_relaxation", True)
    solver.setOptionValue("solver", "ipm")
    solver.setOptionValue("presolve", "off")  # takes longer than it saves
    solver.run()
    seconds = solver.getRunTime()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None, seconds
    solution = solver.getSolution()
    used, costs = np.array(solution.col_value) > _ZERO, np.array(solution.col_dual)
    worth = np.abs(np.array(solution.row_dual)[priced])
    useful = np.ones(len(costs), dtype=bool)
    useful[: len(priced)] = used[: len(priced)] | (costs[: len(priced)] <= near * np.maximum(worth, worth.mean()))
    return _Relaxation(float(solver.getInfo().objective_function_value), costs, useful, used), seconds


def _solver(lp: highspy.HighsLp, limit_s: float) -> highspy.Highs:
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", max(limit_s, 0.0))
    solver.passModel(lp)
    return solver


def _solve(lp: highspy.HighsLp, terms: Terms, limit_s: float, hint: Hint | None = None) -> Solution | None:
    solver = _solver(lp, limit_s)
    solver.setOptionValue("mip_rel_gap", terms.rel_gap)
    solver.setOptionValue("mip_abs_gap", terms.abs_gap)
    if hint is not None:
        solver.setOptionValue("objective_target", hint.bound + terms.allowed(hint.bound))  # nearer is not asked for
        integer = np.flatnonzero([kind == highspy.HighsVarType.kInteger for kind in lp.integrality_])
        solver.setSolution(len(integer), integer.astype(np.int32), hint.start[integer])
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    if status in _NONE:
        return None
    stopped = status == highspy.HighsModelStatus.kTimeLimit
    if stopped and info.primal_solution_status != _FEASIBLE:
        raise NoTimeError
    if not stopped and status not in _ENDED:
        raise ArithmeticError(f"the program was not solved: {status}")
    values = np.array(solver.getSolution().col_value)
    objective, bound = float(info.objective_function_value), float(info.mip_dual_bound)
    return Solution(values, objective, bound, solver.getRunTime(), stopped)
