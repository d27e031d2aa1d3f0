"""The linear relaxation of a program with far more columns than any solution uses, by sifting. Pure.

A program of some columns is solved, its dual values price all others, those that are worth it join, and so on
(sifting: Bixby, Gregory, Lustig, Marsten and Shanno, 1992). It begins with coarse columns, in which job classes of
similar lengths go together in the proportion of the mix: few, each a mean of columns that there are, and near to what
is best.

Every round tells a bound. Where a column that is left out would still be worth it, the price of its class is lowered
until none is: then all dual values are legal, and weak duality holds. What that lowers the objective by is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from planner.sparse_rows import Array, Index, Mask, Model, linear

_ROUNDS = 60
#: Columns that join in a round, of each class and of each kind.
_JOIN = 6
#: A round that leaves less than this share of the objective is the last.
_CLOSE = 1e-7
#: Reduced costs nearer to zero than this are none (HiGHS' own tolerance is 1e-7).
_ZERO = 1e-9
#: Columns that cost no more than this share beyond their worth are all as good.
_TIED = 1e-6
_SIMPLEX_PRIMAL = 4


@dataclass(frozen=True, slots=True)
class Sharing:
    """The columns that share the jobs out: the first of a model; the rows of the classes are the first rows,
    four of each kind of engine are the next: where columns bring engines, the first of them has a negative entry.

    Attributes:
        classes: of each such column the class of its jobs.
        kinds: of each the kind of engine.
        shares: of the jobs of each class; the sum over its columns is this share of the column ``rate``.
        groups: of each class the group of similar ones it is in.
        rate: index of the column that counts jobs.
    """

    classes: Index
    kinds: Index
    shares: Array
    groups: Index
    rate: int

    def table(self, values: Array) -> Array:
        """Values of these columns as a table of classes and kinds, infinite where there is no column."""
        found = np.full((len(self.shares), int(self.kinds.max()) + 1), np.inf)
        found[self.classes, self.kinds] = values[: len(self.classes)]
        return found


@dataclass(frozen=True, slots=True)
class Relaxed:
    """What the relaxation tells.

    Attributes:
        bound: no solution has a lower objective.
        values: of all columns but those that share jobs out.
        costs: of every column what it costs beyond what it is worth.
        prices: dual value of each row, those of classes lowered to what their cheapest column costs.
        seconds: what it took.
    """

    bound: float
    values: Array
    costs: Array
    prices: Array
    seconds: float


class Relaxation:
    """The relaxation of programs that differ in costs and in bounds of columns alone."""

    def __init__(self, sharing: Sharing) -> None:
        """Begin with no columns.

        Args:
            sharing: the columns that are not all taken in at once.
        """
        self._sharing = sharing
        self._solver: highspy.Highs | None = None
        self._inside = np.zeros(len(sharing.classes), dtype=bool)

    def solve(self, model: Model, limit_s: float) -> Relaxed | None:
        """The relaxation; None where no first solution was found in time, or there is none."""
        fresh = self._solver is None
        solver = self._solver = self._solver or self._begin(model)
        begun = 0.0 if fresh else solver.getRunTime()
        if not fresh:
            self._change(solver, model)
        best: Relaxed | None = None
        for number in range(_ROUNDS):
            left = limit_s - (solver.getRunTime() - begun)
            if left <= 0 or not _run(solver, left):
                break
            found, table, objective = self._look(solver, model)
            best = found if best is None or found.bound >= best.bound else best
            joining = self._coarse_joining(table) if fresh and number == 0 else self._joining(table)
            if objective - found.bound <= _CLOSE * abs(objective) or not len(joining):
                break
            self._join(solver, model, joining)
        if best is None:
            self._solver = None
            return None
        return Relaxed(best.bound, best.values, best.costs, best.prices, solver.getRunTime() - begun)

    def _begin(self, model: Model) -> highspy.Highs:
        """All columns but those that share jobs out, then the coarse ones."""
        solver = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("presolve", "off"), ("solver", "simplex")):
            solver.setOptionValue(option, value)
        self._inside[:] = False
        others = np.arange(len(self._inside), len(model.costs))
        start, row, value = model.matrix.some(others)
        more, more_row, more_value = self._coarse(model)
        entries = (
            np.concatenate([start, start[-1] + more[1:]]),
            np.concatenate([row, more_row]),
            np.concatenate([value, more_value]),
        )
        zeros = np.zeros(len(more) - 1)
        costs = np.concatenate([model.costs[others], zeros])
        lower = np.concatenate([model.lower[others], zeros])
        upper = np.concatenate([model.upper[others], zeros + np.inf])
        solver.passModel(linear(costs, lower, upper, entries, model))
        return solver

    def _coarse(self, model: Model) -> tuple[Index, Index, Array]:
        """Of each kind and group that it can hold all of, the mean column: where each starts, rows and values."""
        sharing, rows = self._sharing, len(model.matrix.lower)
        of_pair = sharing.groups[sharing.classes] * (int(sharing.kinds.max()) + 1) + sharing.kinds
        names, number = np.unique(of_pair, return_inverse=True)
        whole = np.bincount(sharing.groups)[names // (int(sharing.kinds.max()) + 1)] == np.bincount(number)
        number = np.where(whole, np.cumsum(whole) - 1, -1)[number]
        entries = slice(0, int(model.matrix.start[len(number)]))
        column = number[model.matrix.column[entries]]
        group_shares = np.bincount(sharing.groups, sharing.shares)
        weight = (sharing.shares / group_shares[sharing.groups])[sharing.classes]
        value = (model.matrix.value[entries] * weight[model.matrix.column[entries]])[column >= 0]
        key = (column * rows + model.matrix.row[entries])[column >= 0]
        places, at = np.unique(key, return_inverse=True)
        start = np.searchsorted(places, np.arange(int(whole.sum()) + 1) * rows)
        return start, places % rows, np.bincount(at, value, len(places)).astype(np.float64)

    def _change(self, solver: highspy.Highs, model: Model) -> None:
        """To other costs and bounds; what joined stays."""
        first = len(self._inside)
        at = np.arange(len(model.costs) - first, dtype=np.int32)
        solver.changeColsCost(len(at), at, model.costs[first:])
        solver.changeColsBounds(len(at), at, model.lower[first:], model.upper[first:])

    def _look(self, solver: highspy.Highs, model: Model) -> tuple[Relaxed, Array, float]:
        """What this round tells; of each column beyond the prices as they are what it costs; and the objective."""
        sharing, matrix = self._sharing, model.matrix
        solution = solver.getSolution()
        prices = np.array(solution.row_dual)
        objective = float(solver.getInfo().objective_function_value)
        worth = np.bincount(matrix.column, matrix.value * prices[matrix.row], len(model.costs))
        costs = model.costs - worth
        table = sharing.table(costs)
        least = table.min(axis=1)
        classes = len(sharing.shares)
        lowered, loss = prices.copy(), float(sharing.shares @ np.minimum(least, 0.0))
        lowered[:classes] += least
        costs[: len(sharing.classes)] -= least[sharing.classes]
        bound = self._bound(objective, loss, model)
        values = np.array(solution.col_value)[: len(model.costs) - len(sharing.classes)]
        return Relaxed(bound, values, costs, lowered, 0.0), table, objective

    def _bound(self, objective: float, loss: float, model: Model) -> float:
        """With the class prices lowered by ``loss`` (below 0) for each job of the mix.

        Where only the rate counts, all dual values can be scaled so that it costs nothing again; else each job that
        could be done at most costs so much.
        """
        rate = self._sharing.rate
        others = np.delete(model.costs, rate)
        if not others.any() and model.lower[rate] <= 0 and model.costs[rate] < 0:
            left = 1 + loss / -model.costs[rate]
            return objective / left if left > 0 else -np.inf
        return objective + loss * float(model.upper[rate]) if loss < 0 else objective

    def _coarse_joining(self, table: Array) -> Index:
        """Beside coarse columns the prices of single classes say nothing: what is cheapest for each joins."""
        cheapest = table.min(axis=1, keepdims=True)
        return self._best(table - cheapest, np.isfinite(table))

    def _joining(self, table: Array) -> Index:
        return self._best(table, table < -_ZERO)

    def _best(self, table: Array, wanted: NDArray[np.bool_]) -> Index:
        """Columns that are among the best of their class or their kind."""
        chosen = np.zeros(table.shape, dtype=bool)
        of_class = np.argpartition(table, min(_JOIN, table.shape[1] - 1), axis=1)[:, :_JOIN]
        np.put_along_axis(chosen, of_class, True, axis=1)
        of_kind = np.argpartition(table, min(_JOIN, table.shape[0] - 1), axis=0)[:_JOIN]
        np.put_along_axis(chosen, of_kind, True, axis=0)
        chosen &= wanted
        return np.flatnonzero(chosen[self._sharing.classes, self._sharing.kinds] & ~self._inside)

    def _join(self, solver: highspy.Highs, model: Model, joining: Index) -> None:
        self._inside[joining] = True
        start, row, value = model.matrix.some(joining)
        zeros = np.zeros(len(joining))
        upper = np.full(len(joining), highspy.kHighsInf)
        starts, rows = start[:-1].astype(np.int32), row.astype(np.int32)
        solver.addCols(len(joining), zeros, zeros, upper, len(value), starts, rows, value)
        solver.setOptionValue("simplex_strategy", _SIMPLEX_PRIMAL)  # what was best is still a solution


def _run(solver: highspy.Highs, limit_s: float) -> bool:
    solver.setOptionValue("time_limit", solver.getRunTime() + limit_s)
    solver.run()
    return solver.getModelStatus() == highspy.HighsModelStatus.kOptimal


def near(sharing: Sharing, costs: Array, kinds: Mask, most: int, share: float, worth: Array) -> Mask:
    """Columns that cost little beyond what their jobs are worth.

    Args:
        sharing: the columns.
        costs: of each what it costs beyond.
        kinds: kinds of engines that there may be some of.
        most: so many of each class, and of each kind, at most; 0: all.
        share: of the worth that a column of a kind may cost beyond.
        worth: of a job of each class.
    """
    scale = np.maximum(np.maximum(np.abs(worth), np.abs(worth).mean()), _ZERO)
    table = sharing.table(costs) / scale[:, None]
    table[:, ~kinds] = np.inf
    close = table <= share
    if most:
        kept = min(most, table.shape[0]) - 1
        close &= table <= np.partition(table, kept, axis=0)[kept]
        kept = min(most, table.shape[1]) - 1
        close |= (table <= np.partition(table, kept, axis=1)[:, [kept]]) & np.isfinite(table)
        close |= table <= _TIED
    return close[sharing.classes, sharing.kinds]
