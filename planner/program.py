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
from dataclasses import replace

import numpy as np

from broker.length_class import LengthClass
from planner.goal import Choice, Fractions, Goal, Values
from planner.layouts import MachineType
from planner.mixed_integer import Solution, Terms, solve_whole
from planner.program_rows import Column, ProgramRows
from planner.relaxation import Relaxation, Relaxed
from planner.sparse_rows import Index, Model
from planner.stepwise import solve_relaxed, solve_some
from planner.usage import by_usage, greedy_price

#: A program of more x than this is solved by way of its relaxation and smaller ones.
_LARGE = 3_000
#: What a bound that was reckoned in floating point may be wrong by, as a share.
_ROUNDING = 1e-9


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
        """Lay out the columns and rows.

        Args:
            types: the machines.
            classes: jobs that some option can hold; their numbers are shares.
            gap: a solution this near to the best is as good, as a share of the objective.
            limit_s: seconds for all goals together.
            prove_s: seconds for each goal after which no more is done to prove a solution that was found.
            spared: types of machines and layouts of each: one type at least does without all of its.
            large: with more x than this it is solved by way of its relaxation.
        """
        self.gap = gap
        self.values: Values | None = None
        self._left_s, self._prove_s = limit_s, prove_s
        self._rows = ProgramRows(types, classes, spared or {})
        self._sharing = self._rows.sharing
        self._relaxation = Relaxation(self._sharing) if self._rows.pairs > large else None
        self._most_rate = np.inf
        self._priced = Relaxation(self._sharing)  # begins anew: where price counts other columns are of use

    @property
    def left_s(self) -> float:
        """Seconds that are left for further goals."""
        return max(self._left_s, 0.0)

    def solve(self, goal: Goal, prove_s: float = float("inf")) -> Choice | None:
        """The best counts for a goal, or the best that were found in time; None where nothing reaches it.

        Args:
            goal: what to look for.
            prove_s: see the class; the smaller one counts.

        Raises:
            NoTimeError: the time ran out before anything was found.
        """
        model, unit = self._model(goal)
        prove_s = min(prove_s, self._prove_s)
        abs_gap = max(1e-9, self.gap * goal.of_value / unit)
        relaxed = self._relaxed(goal, model)
        terms = Terms(self.gap, abs_gap, self.left_s, prove_s, goal.of_value / unit)
        found = solve_whole(model, terms) if relaxed is None else self._from_relaxed(goal, model, relaxed, terms)
        if found is None:
            return None
        self._left_s -= found.seconds
        return self._choice(found, unit)

    def _from_relaxed(self, goal: Goal, model: Model, relaxed: Relaxed, terms: Terms) -> Solution | None:
        """Where price counts, which machines to use is the first question; then what is found is proven."""
        begin, spent = None, 0.0
        if goal.price_weight and goal.most_price_a_rate is None:

            def given(of_machines: Model, layouts: Index) -> Solution | None:
                return solve_some(of_machines, self._sharing, relaxed, terms, layouts)

            begin, bound, spent = by_usage(self._rows, model, relaxed, terms, given)
            relaxed = replace(relaxed, bound=bound)
            begin = None if begin is None else replace(begin, bound=bound)
        found = solve_relaxed(model, self._sharing, relaxed, terms.after(spent), begin)
        return None if found is None else replace(found, seconds=found.seconds + spent)

    def relax(self, goal: Goal) -> Fractions | None:
        """What no plan does better than; None where the program is small, or there was no time."""
        model, unit = self._model(goal)
        relaxed = self._relaxed(goal, model)
        if relaxed is None:
            return None
        rows, pairs = self._rows, self._rows.pairs
        used = relaxed.values[rows.u - pairs : rows.w - pairs]
        price = float(used @ [price for _, price, _ in rows.tiers])
        return Fractions(float(relaxed.values[rows.rate - pairs]) * rows.scale, price, -relaxed.bound * unit)

    def price_guess(self, least_rate: float) -> float | None:
        """About the least price an hour for each job a second at a rate; at no rate, that of the best machine.

        Parts of machines count, by what their engines are worth at the highest rate. None where that is not known, or
        they are not worth the rate.
        """
        if self.values is None:
            return None
        engines = np.array([*self.values.engines.values()])
        return greedy_price(self._rows, self._rows.layouts_worth(engines), least_rate)

    def _relaxed(self, goal: Goal, model: Model) -> Relaxed | None:
        if self._relaxation is None:
            return None
        capped = goal.most_price_a_rate is not None
        relaxation = self._priced if goal.price_weight else self._relaxation
        if capped:  # a row more is another program
            relaxation = Relaxation(self._sharing)
        relaxed = relaxation.solve(model, self.left_s)
        if relaxed is None:
            return None
        self._left_s -= relaxed.seconds
        if not capped and not goal.price_weight and not goal.least_rate and relaxed.bound > -np.inf:
            self._most_rate = -relaxed.bound * (1 + _ROUNDING)
            self.values = self._values(relaxed)
        return relaxed

    def _values(self, relaxed: Relaxed) -> Values:
        jobs, engines = self._rows.worth(relaxed.prices)
        each = (engines * self._rows.scale).tolist()
        return Values(jobs, dict(zip(self._rows.kinds, each, strict=True)))

    def _choice(self, found: Solution, unit: float) -> Choice:
        rows = self._rows
        counts = {column: round(found.values[rows.z + i]) for i, column in enumerate(rows.columns)}
        return Choice(
            {column: count for column, count in counts.items() if count},
            float(found.values[rows.rate]) * rows.scale,
            self._price(counts),
            found.gap,
            found.short * unit,
            found.stopped,
        )

    def _price(self, counts: Mapping[Column, int]) -> float:
        """Of the cheapest machines of each type, as many as are used."""
        used: Counter[int] = Counter()
        for (m, _), count in counts.items():
            used[m] += count
        return sum(price or 0.0 for m, count in used.items() for price in self._rows.types[m].prices[:count])

    def _model(self, goal: Goal) -> tuple[Model, float]:
        """The program, and the unit in which its objective is counted."""
        rows = self._rows
        columns = rows.rate + 1
        prices = np.array([price for _, price, _ in rows.tiers])
        cost = np.zeros(columns)
        cost[rows.u : rows.w] = goal.price_weight * prices
        cost[rows.rate] = -goal.rate_weight * rows.scale
        unit = float(np.abs(cost).max()) or 1.0
        lower, upper = np.zeros(columns), np.full(columns, np.inf)
        upper[rows.z : rows.u] = [len(rows.types[m].names) for m, _ in rows.columns]
        upper[rows.u : rows.w] = [n for _, _, n in rows.tiers]
        upper[rows.w : rows.rate] = 1
        lower[rows.rate] = goal.least_rate / rows.scale
        upper[rows.rate] = max(self._most_rate, lower[rows.rate])
        integer = np.zeros(columns, dtype=bool)
        integer[rows.z : rows.u] = integer[rows.w : rows.rate] = True
        matrix = rows.matrix
        if goal.most_price_a_rate is not None:
            at = np.append(np.arange(rows.u, rows.w), rows.rate)
            row = np.append(prices, -goal.most_price_a_rate * rows.scale)
            matrix = matrix.with_row(at, row, -np.inf, 0.0)
        return Model(cost / unit, lower, upper, integer, matrix), unit
