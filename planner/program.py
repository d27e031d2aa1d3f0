"""What each machine should run, as a mixed-integer program: the scheduler's linear program with engines to choose.
Pure.

The program of ``broker.fluid`` shares jobs of length classes c out among engines of kinds k, so that they are done in
the least time. Here that time is one second and the number of jobs done in it, ``rate``, is the variable; so are the
numbers of engines. ``z[m,l]`` machines of type m have the layout l, ``u[m,p]`` of those of price p are used, and n[k]
engines of kind k follow:

    maximise rate   where   sum_k x[c,k] = share[c] * rate
                            own[k] . x[:,k] + d[k] * y[k]  <=  n[k]
                            context_steps . x[:,k]  <=  K[k] * y[k]        (seats and tokens a step likewise)
                            sum_l z[m,l]  <=  sum_p u[m,p],   u[m,p]  <=  machines[m,p]
                            sum_l z[m,l]   =  machines[m]   where each must have workers
                            z integer

Machines that are alike are counted, not told apart: their layouts are columns, as patterns are in cutting stock
(Gilmore and Gomory, 1961), so that a hundred machines are as easy as ten. So are engines that are alike, whatever
machine they are on. Of machines that differ in price alone the cheapest are used first, which makes u integer where z
is. With the counts fixed this is ``broker.fluid`` itself.

For the second-best plan one type of machine has to do without some of its layouts: ``w[m]`` says whether this one.

    sum_l z[m,l]  <=  machines[m] * (1 - w[m])   for these layouts l,   sum_m w[m]  >=  1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from broker.fluid import LengthClass
from broker.throughput import DeviceKind
from planner.layouts import MachineType
from planner.mixed_integer import Hint, Solution, Terms, solve_large, solve_whole
from planner.sparse_rows import Array, Rows, fill

#: A program of more x than this is solved by way of a smaller one, without those x that are further than this share of
#: what the job is worth from being worth it.
_LARGE, _NEAR = 10_000, 0.03

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


@dataclass(frozen=True, slots=True)
class Before:
    """A program that was solved before, of machines with the same and no better layouts, for the highest rate.

    Attributes:
        program: it.
        most_rate: no plan of its machines has more, jobs a second.
        start: a plan to begin with.
        spared: the machine type that does without its layouts there.
    """

    program: Program
    most_rate: float
    start: Mapping[Column, int]
    spared: int


class Program:
    """The program for some machines and a mix of jobs, to be solved for one goal after another."""

    def __init__(
        self,
        types: Sequence[MachineType],
        classes: Sequence[LengthClass],
        gap: float,
        limit_s: float = float("inf"),
        prove_s: float = float("inf"),
        spared: Mapping[int, Collection[int]] | None = None,
        large: int = _LARGE,
    ) -> None:
        """Lay out the columns: x, y, z, u, w, rate.

        Args:
            types: the machines.
            classes: jobs that some option can hold; their numbers are shares.
            gap: a solution this near to the best is as good, as a share of the objective.
            limit_s: seconds for all goals together.
            prove_s: seconds for each goal after which no more is done to prove a solution that was found.
            spared: types of machines and layouts of each: one type at least does without all of its.
            large: with more x than this it is solved by way of a smaller program.
        """
        self._types, self._gap, self._left_s, self._prove_s = types, gap, limit_s, prove_s
        self._large = large
        self._columns: list[Column] = [(m, n) for m, machines in enumerate(types) for n in range(len(machines.layouts))]
        self._engines = _engines_of(types, self._columns)
        self._kinds = list(self._engines)
        jobs = np.array([c.jobs for c in classes], dtype=float)
        self._shares = jobs / jobs.sum()
        self._work = np.array([c.work for c in classes], dtype=float)
        fits = np.array([[kind.can_hold(c.longest) for kind in self._kinds] for c in classes], dtype=bool)
        self._cs, self._ks = np.nonzero(fits.reshape(len(classes), len(self._kinds)))
        pairs, n = len(self._cs), len(self._kinds)
        self._y, self._z = pairs, pairs + n
        self._u = self._z + len(self._columns)
        self._tiers = [(m, price, n) for m, machines in enumerate(types) for price, n in _tiers(machines)]
        self._w = self._u + len(self._tiers)
        self._spared = spared or {}
        self._rate = self._w + len(self._spared)
        self._scale = self._rate_scale()
        self._matrix = self._build()
        self._useful: NDArray[np.bool_] | None = None

    def solve(self, goal: Goal, before: Before | None = None) -> Choice | None:
        """The best counts for a goal, or the best that were found in time; None where nothing reaches it.

        Args:
            goal: what to look for.
            before: a program much like it whose goal was the rate, as this one's is.

        Raises:
            NoTimeError: the time ran out before anything was found.
        """
        lp, unit = self._model(goal)
        terms = Terms(self._gap, max(1e-9, self._gap * goal.of_value / unit), self.left_s, self._prove_s)
        large = len(self._cs) > self._large
        hint = self._hint(before, unit) if before is not None and large else None
        found = solve_large(lp, self._cs, _NEAR, terms, hint) if large else solve_whole(lp, terms)
        if found is None:
            return None
        self._useful = found.useful
        self._left_s -= found.seconds
        return self._choice(found, unit)

    def _hint(self, before: Before, unit: float) -> Hint | None:
        """What the program before tells of this one's columns; None where it was solved without a relaxation."""
        earlier = before.program
        if earlier._useful is None:
            return None
        known = np.ones((len(self._shares), len(earlier._kinds) + 1), dtype=bool)  # the last: of kinds new to it
        known[earlier._cs, earlier._ks] = earlier._useful[: earlier._y]
        number = {kind: k for k, kind in enumerate(earlier._kinds)}
        of_kind = np.array([number.get(kind, len(earlier._kinds)) for kind in self._kinds])
        useful = np.ones(self._rate + 1, dtype=bool)
        useful[: self._y] = known[self._cs, of_kind[self._ks]]
        start = np.zeros(self._rate + 1)
        for i, column in enumerate(self._columns):
            start[self._z + i] = before.start.get(column, 0)
        for i, m in enumerate(self._spared):
            start[self._w + i] = float(m == before.spared)
        return Hint(useful, -before.most_rate / unit, start)

    @property
    def left_s(self) -> float:
        """Seconds that are left for further goals."""
        return max(self._left_s, 0.0)

    def _choice(self, found: Solution, unit: float) -> Choice:
        counts = {column: round(found.values[self._z + i]) for i, column in enumerate(self._columns)}
        return Choice(
            {column: count for column, count in counts.items() if count},
            float(found.values[self._rate]) * self._scale,
            self._price(counts),
            found.gap,
            max(found.objective - found.bound, 0.0) * unit,
            found.stopped,
        )

    def _price(self, counts: Mapping[Column, int]) -> float:
        """Of the cheapest machines of each type, as many as are used."""
        used: Counter[int] = Counter()
        for (m, _), count in counts.items():
            used[m] += count
        return sum(price or 0.0 for m, count in used.items() for price in self._types[m].prices[:count])

    def _rate_scale(self) -> float:
        """A rate of the right order, so that the numbers stay near 1: what one engine does at best, times the
        machines."""
        costs = [float(self._shares @ (self._work[:, :4] @ times)) for times in self._times()]
        fastest = min((cost for cost in costs if cost > 0), default=1.0)
        return sum(len(machines.names) for machines in self._types) / fastest

    def _times(self) -> Array:
        p = [kind.profile for kind in self._kinds]
        return np.array([[q.prefill_b, q.prefill_c, q.decode_e, q.decode_f] for q in p]).reshape(-1, 4)

    def _build(self) -> Rows:
        rows = Rows()
        inf = float("inf")
        times, scale = self._times(), self._scale
        for c, share in enumerate(self._shares):
            mine = np.flatnonzero(self._cs == c)
            rows.add([*mine, self._rate], [*np.ones(len(mine)), -share], 0.0, 0.0)
        for k, kind in enumerate(self._kinds):
            mine = np.flatnonzero(self._ks == k)
            work = self._work[self._cs[mine]]
            profile = kind.profile
            engines = self._engines[kind]
            at, counts = [self._z + i for i in engines], [-float(n) for n in engines.values()]
            own = work[:, :4] @ times[k] * scale
            rows.add([*mine, self._y + k, *at], [*own, profile.decode_d * scale, *counts], -inf, 0.0)
            rooms = (profile.kv_tokens, profile.seats, kind.max_batched_tokens)
            for feature, room in zip((3, 2, 4), rooms, strict=True):
                rows.add([*mine, self._y + k], [*(work[:, feature] / room), -1.0], -inf, 0.0)
        for m in range(len(self._types)):
            mine = [self._z + i for i, (number, _) in enumerate(self._columns) if number == m]
            tiers = [self._u + i for i, (number, _, _) in enumerate(self._tiers) if number == m]
            rows.add([*mine, *tiers], [*([1.0] * len(mine)), *([-1.0] * len(tiers))], -inf, 0.0)
            if self._types[m].machine.min_workers and mine:  # such a machine is never idle
                machines = float(len(self._types[m].names))
                rows.add([*mine], [1.0] * len(mine), machines, machines)
        for i, (m, layouts) in enumerate(self._spared.items()):
            mine = [
                self._z + n for n, (number, layout) in enumerate(self._columns) if number == m and layout in layouts
            ]
            machines = float(len(self._types[m].names))
            rows.add([*mine, self._w + i], [*([1.0] * len(mine)), machines], -inf, machines)
        if self._spared:
            rows.add(range(self._w, self._rate), [1.0] * len(self._spared), 1.0, inf)
        return rows

    def _model(self, goal: Goal) -> tuple[highspy.HighsLp, float]:
        """The program as HiGHS takes it, and the unit in which its objective is counted."""
        rows, inf = self._matrix, highspy.kHighsInf
        columns = self._rate + 1
        prices = np.array([price for _, price, _ in self._tiers])
        extra = Rows()
        if goal.most_price_a_rate is not None:
            cols = [*range(self._u, self._w), self._rate]
            extra.add(cols, [*prices, -goal.most_price_a_rate * self._scale], -inf, 0.0)
        lp = highspy.HighsLp()
        lp.num_col_ = columns
        cost = np.zeros(columns)
        cost[self._u : self._w] = goal.price_weight * prices
        cost[self._rate] = -goal.rate_weight * self._scale
        unit = float(np.abs(cost).max()) or 1.0
        lp.col_cost_ = cost / unit
        lower, upper = np.zeros(columns), np.full(columns, inf)
        for i, column in enumerate(self._columns):
            upper[self._z + i] = len(self._types[column[0]].names)
        upper[self._u : self._w] = [n for _, _, n in self._tiers]
        upper[self._w : self._rate] = 1
        lower[self._rate] = goal.least_rate / self._scale
        lp.col_lower_, lp.col_upper_ = lower, upper
        kind = [highspy.HighsVarType.kContinuous] * columns
        whole = [*range(self._z, self._u), *range(self._w, self._rate)]
        for column in whole:
            kind[column] = highspy.HighsVarType.kInteger
        lp.integrality_ = kind
        fill(lp, rows, extra)
        return lp, unit


def _tiers(machines: MachineType) -> list[tuple[float, int]]:
    """The prices of machines that are alike, ascending, and how many have each."""
    return sorted(Counter(price or 0.0 for price in machines.prices).items())


def _engines_of(types: Sequence[MachineType], columns: Sequence[Column]) -> dict[DeviceKind, dict[int, int]]:
    """Of each kind of engine, the columns that bring some, and how many each: alike ones of all machines together."""
    engines: dict[DeviceKind, dict[int, int]] = {}
    for i, (m, layout) in enumerate(columns):
        for option, count in types[m].layouts[layout]:
            of_column = engines.setdefault(types[m].options[option].kind, {})
            of_column[i] = of_column.get(i, 0) + count
    return engines
