"""A mixed-integer program solved by HiGHS: when to end, and what was found. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import highspy
import numpy as np

from planner.sparse_rows import Array, Index, Model

#: HiGHS' word for a solution that keeps to all rows.
FEASIBLE = 2
#: What is further from the best than this is no solution yet: the search goes on while there is time.
_USEFUL = 0.05
_ENDED = (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kObjectiveTarget)
_NONE = (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)


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
        of_value: what a gap is a share of where the objective is nearer to zero, in its units.
    """

    rel_gap: float
    abs_gap: float
    limit_s: float
    prove_s: float = float("inf")
    of_value: float = 0.0

    def useful(self, found: Solution) -> bool:
        """Whether it is near enough to the best to do with it."""
        return found.short <= _USEFUL * max(abs(found.objective), self.of_value)

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
    """

    values: Array
    objective: float
    bound: float
    seconds: float
    stopped: bool

    @property
    def short(self) -> float:
        """How far a better one could at most be."""
        return max(self.objective - self.bound, 0.0)

    @property
    def gap(self) -> float:
        """The same as a share of the objective."""
        return self.short / abs(self.objective) if self.objective else float(self.short > 0)


def solve_whole(model: Model, terms: Terms) -> Solution | None:
    """The best solution, or the best found in time; None where there is none.

    Raises:
        NoTimeError: the time ran out before anything was found.
    """
    every = np.arange(len(model.costs))
    first_s = min(terms.prove_s, terms.limit_s)
    try:
        found = solve_columns(model, every, terms, first_s)
        if found is None or not found.stopped or terms.useful(found) or first_s >= terms.limit_s:
            return found
    except NoTimeError:
        if first_s >= terms.limit_s:
            raise
    found = solve_columns(model, every, terms, terms.limit_s - first_s)
    return None if found is None else replace(found, seconds=found.seconds + first_s)


def solve_columns(
    model: Model, columns: Index, terms: Terms, limit_s: float, start: Array | None = None
) -> Solution | None:
    """The best solution, or the best found in time, of these columns alone; None where there is none.

    Args:
        model: the program; its other columns are at their least values.
        columns: those that count.
        terms: when a solution is good enough.
        limit_s: seconds to search.
        start: values of a solution to begin with; of whole numbers alone they count.

    Raises:
        NoTimeError: the time ran out before anything was found.
    """
    solver = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", max(limit_s, 0.0))):
        solver.setOptionValue(option, value)
    lp = model.lp(columns)
    kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
    lp.integrality_ = [kinds[whole] for whole in model.integer[columns].tolist()]
    solver.passModel(lp)
    solver.setOptionValue("mip_rel_gap", terms.rel_gap)
    solver.setOptionValue("mip_abs_gap", terms.abs_gap)
    if start is not None:
        integer = np.flatnonzero(model.integer[columns])
        solver.setSolution(len(integer), integer.astype(np.int32), np.round(start[columns][integer]))
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    if status in _NONE:
        return None
    stopped = status == highspy.HighsModelStatus.kTimeLimit
    if stopped and info.primal_solution_status != FEASIBLE:
        raise NoTimeError
    if not stopped and status not in _ENDED:
        raise ArithmeticError(f"the program was not solved: {status}")
    values = model.lower.copy()
    values[columns] = solver.getSolution().col_value
    objective, bound = float(info.objective_function_value), float(info.mip_dual_bound)
    return Solution(values, objective, bound, solver.getRunTime(), stopped)
