"""What each machine should run, as a mixed-integer program: the scheduler's linear program with engines to choose.
Pure.

The program of ``broker.fluid`` shares jobs of length classes c out among engines of kinds k, so that they are done in
the least time. Here that time is one second and the number of jobs done in it, ``rate``, is the variable; so are the
numbers of engines. ``z[m,l]`` machines of type m have the layout l, ``u[m]`` of them are used, and n[k] engines of
kind k follow:

    maximise rate   where   sum_k x[c,k] = share[c] * rate
                            own[k] . x[:,k] + d[k] * y[k]  <=  n[k]
                            context_steps . x[:,k]  <=  K[k] * y[k]        (seats and tokens a step likewise)
                            sum_l z[m,l]  <=  u[m]  <=  machines[m]
                            z, u integer

Machines that are alike are counted, not told apart: their layouts are columns, as patterns are in cutting stock
(Gilmore and Gomory, 1961), so that a hundred machines are as easy as ten. With the counts fixed this is
``broker.fluid`` itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray

from broker.fluid import LengthClass
from planner.layouts import MachineType

Array = NDArray[np.float64]

#: HiGHS' word for a solution that keeps to all rows.
_FEASIBLE = 2

#: A machine type and one of its layouts, by index.
Column = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Goal:
    """What to look for: ``rate_weight * rate - price_weight * price`` as large as can be.

    Attributes:
        rate_weight: value of a job a second.
        price_weight: value of one unit of price an hour.
        least_rate: jobs a second that it must reach.
        most_price_a_rate: most price an hour for each job a second; None: any.
        of_value: what the gap is a share of, where the goal itself is a small difference; 0: of the goal.
    """

    rate_weight: float = 1.0
    price_weight: float = 0.0
    least_rate: float = 0.0
    most_price_a_rate: float | None = None
    of_value: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A solution.

    Attributes:
        layouts: machines of each type that get each layout.
        rate: jobs a second.
        price_per_hour: of the machines in use.
        gap: how far a better one could at most be, as a share of the objective.
        short: the same in the units of the goal.
        stopped: whether the time ran out before ``gap`` was as small as asked for.
    """

    layouts: Mapping[Column, int]
    rate: float
    price_per_hour: float
    gap: float
    short: float = 0.0
    stopped: bool = False


class NoTimeError(Exception):
    """The time ran out before any solution was found."""


@dataclass(slots=True)
class _Rows:
    """A sparse matrix in the making, with the bounds of its rows."""

    rows: list[NDArray[np.intp]] = field(default_factory=list[NDArray[np.intp]])
    cols: list[NDArray[np.intp]] = field(default_factory=list[NDArray[np.intp]])
    values: list[Array] = field(default_factory=list[Array])
    lower: list[float] = field(default_factory=list[float])
    upper: list[float] = field(default_factory=list[float])

    def add(
        self, cols: Sequence[int] | NDArray[np.intp], values: Sequence[float] | Array, low: float, up: float
    ) -> None:
        self.rows.append(np.full(len(cols), len(self.lower), dtype=np.intp))
        self.cols.append(np.asarray(cols, dtype=np.intp))
        self.values.append(np.asarray(values, dtype=float))
        self.lower.append(low)
        self.upper.append(up)


class Program:
    """The program for some machines and a mix of jobs, to be solved for one goal after another."""

    def __init__(
        self,
        types: Sequence[MachineType],
        classes: Sequence[LengthClass],
        gap: float,
        limit_s: float = float("inf"),
    ) -> None:
        """Lay out the columns: x, y, z, u, rate.

        Args:
            types: the machines.
            classes: jobs that some option can hold; their numbers are shares.
            gap: a solution this near to the best is as good, as a share of the objective.
            limit_s: seconds for all goals together.
        """
        self._types, self._gap, self._left_s = types, gap, limit_s
        kinds = [(m, o) for m, machines in enumerate(types) for o in range(len(machines.options))]
        self._kinds = [types[m].options[o].kind for m, o in kinds]
        self._kind_at = {pair: k for k, pair in enumerate(kinds)}
        self._columns: list[Column] = [(m, n) for m, machines in enumerate(types) for n in range(len(machines.layouts))]
        jobs = np.array([c.jobs for c in classes], dtype=float)
        self._shares = jobs / jobs.sum()
        self._work = np.array([c.work for c in classes], dtype=float)
        fits = np.array([[kind.can_hold(c.longest) for kind in self._kinds] for c in classes], dtype=bool)
        self._cs, self._ks = np.nonzero(fits.reshape(len(classes), len(self._kinds)))
        pairs, n = len(self._cs), len(self._kinds)
        self._y, self._z = pairs, pairs + n
        self._u = self._z + len(self._columns)
        self._rate = self._u + len(types)
        self._scale = self._rate_scale()
        self._matrix = self._build()

    def solve(self, goal: Goal) -> Choice | None:
        """The best counts for a goal, or the best that were found in time; None where nothing reaches it.

        Raises:
            NoTimeError: the time ran out before anything was found.
        """
        lp, unit = self._model(goal)
        solver = highspy.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("mip_rel_gap", self._gap)):
            solver.setOptionValue(name, value)
        solver.setOptionValue("mip_abs_gap", max(1e-9, self._gap * goal.of_value / unit))
        solver.setOptionValue("time_limit", max(self._left_s, 0.0))
        solver.passModel(lp)
        solver.run()
        self._left_s -= solver.getRunTime()
        status = solver.getModelStatus()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None
        stopped = status == highspy.HighsModelStatus.kTimeLimit
        if stopped and solver.getInfo().primal_solution_status != _FEASIBLE:
            raise NoTimeError
        if not stopped and status != highspy.HighsModelStatus.kOptimal:
            raise ArithmeticError(f"the program was not solved: {status}")
        return self._choice(solver, unit, stopped)

    def _choice(self, solver: highspy.Highs, unit: float, stopped: bool) -> Choice:
        values = np.array(solver.getSolution().col_value)
        counts = {column: round(values[self._z + i]) for i, column in enumerate(self._columns)}
        info = solver.getInfo()
        gap = float(info.mip_gap)
        short = max(float(info.objective_function_value) - float(info.mip_dual_bound), 0.0) * unit
        return Choice(
            {column: count for column, count in counts.items() if count},
            float(values[self._rate]) * self._scale,
            sum(count * self._price(m) for (m, _), count in counts.items()),
            gap if np.isfinite(gap) else float(stopped),
            short,
            stopped,
        )

    def _price(self, type_number: int) -> float:
        return self._types[type_number].machine.price_per_hour or 0.0

    def _rate_scale(self) -> float:
        """A rate of the right order, so that the numbers stay near 1: what one engine does at best, times the
        machines."""
        costs = [float(self._shares @ (self._work[:, :4] @ times)) for times in self._times()]
        fastest = min((cost for cost in costs if cost > 0), default=1.0)
        return sum(len(machines.names) for machines in self._types) / fastest

    def _times(self) -> Array:
        p = [kind.profile for kind in self._kinds]
        return np.array([[q.prefill_b, q.prefill_c, q.decode_e, q.decode_f] for q in p]).reshape(-1, 4)

    def _build(self) -> _Rows:
        rows = _Rows()
        inf = float("inf")
        times, scale = self._times(), self._scale
        for c, share in enumerate(self._shares):
            mine = np.flatnonzero(self._cs == c)
            rows.add([*mine, self._rate], [*np.ones(len(mine)), -share], 0.0, 0.0)
        for k, kind in enumerate(self._kinds):
            mine = np.flatnonzero(self._ks == k)
            work = self._work[self._cs[mine]]
            profile = kind.profile
            engines, counts = self._engines(k)
            own = work[:, :4] @ times[k] * scale
            rows.add([*mine, self._y + k, *engines], [*own, profile.decode_d * scale, *(-n for n in counts)], -inf, 0.0)
            rooms = (profile.kv_tokens, profile.seats, kind.max_batched_tokens)
            for feature, room in zip((3, 2, 4), rooms, strict=True):
                rows.add([*mine, self._y + k], [*(work[:, feature] / room), -1.0], -inf, 0.0)
        for m in range(len(self._types)):
            mine = [self._z + i for i, (number, _) in enumerate(self._columns) if number == m]
            rows.add([*mine, self._u + m], [*([1.0] * len(mine)), -1.0], -inf, 0.0)
        return rows

    def _engines(self, kind: int) -> tuple[list[int], list[float]]:
        """The layouts' columns that bring engines of a kind, and how many each."""
        cols: list[int] = []
        counts: list[float] = []
        for i, (m, layout) in enumerate(self._columns):
            for option, count in self._types[m].layouts[layout]:
                if self._kind_at[m, option] == kind:
                    cols.append(self._z + i)
                    counts.append(float(count))
        return cols, counts

    def _model(self, goal: Goal) -> tuple[highspy.HighsLp, float]:
        """The program as HiGHS takes it, and the unit in which its objective is counted."""
        rows, inf = self._matrix, highspy.kHighsInf
        columns = self._rate + 1
        prices = np.array([self._price(m) for m in range(len(self._types))])
        extra = _Rows()
        if goal.most_price_a_rate is not None:
            cols = [*range(self._u, self._rate), self._rate]
            extra.add(cols, [*prices, -goal.most_price_a_rate * self._scale], -inf, 0.0)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = columns, len(rows.lower) + len(extra.lower)
        cost = np.zeros(columns)
        cost[self._u : self._rate] = goal.price_weight * prices
        cost[self._rate] = -goal.rate_weight * self._scale
        unit = float(np.abs(cost).max()) or 1.0
        lp.col_cost_ = cost / unit
        lower, upper = np.zeros(columns), np.full(columns, inf)
        for i, column in enumerate(self._columns):
            upper[self._z + i] = len(self._types[column[0]].names)
        upper[self._u : self._rate] = [len(machines.names) for machines in self._types]
        lower[self._rate] = goal.least_rate / self._scale
        lp.col_lower_, lp.col_upper_ = lower, upper
        kind = [highspy.HighsVarType.kContinuous] * columns
        kind[self._z : self._rate] = [highspy.HighsVarType.kInteger] * (self._rate - self._z)
        lp.integrality_ = kind
        _fill(lp, rows, extra)
        return lp, unit


def _fill(lp: highspy.HighsLp, rows: _Rows, extra: _Rows) -> None:
    """Both sets of rows, one below the other, column by column as HiGHS takes them."""
    at = np.concatenate([*rows.rows, *(part + len(rows.lower) for part in extra.rows)])
    cols = np.concatenate([*rows.cols, *extra.cols])
    values = np.concatenate([*rows.values, *extra.values])
    order = np.argsort(cols, kind="stable")
    lp.row_lower_ = np.array([*rows.lower, *extra.lower])
    lp.row_upper_ = np.array([*rows.upper, *extra.upper])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(cols, minlength=lp.num_col_))]).astype(np.int32)
    lp.a_matrix_.index_, lp.a_matrix_.value_ = at[order].astype(np.int32), values[order]
