"""The fluid limit of a cluster: the least time in which devices can do a mix of jobs, as a linear program. Pure.

Jobs come in length classes c, devices in kinds k. ``x[c,k]`` jobs of class c run on kind k, whose devices make
``y[k]`` steps together. A device's time goes into its jobs' own work and, d seconds each, into steps; a step serves no
more requests than there are seats, holds no more context than there is KV memory, and computes no more tokens than
its budget (work in flight counts on each left side, too):

    minimise T   where   sum_k x[c,k] = jobs[c]
                         own[k] . x[:,k] + d[k] * y[k]  <=  T * count[k]
                         context_steps . x[:,k]  <=  K[k] * y[k]
                         steps . x[:,k]          <=  S[k] * y[k]
                         tokens . x[:,k]         <=  M[k] * y[k]

Nothing an engine of this model can do is faster, so T bounds every scheduler. The fixed cost d of a step is shared by
memory or by seats, whichever run out, over the device's whole mix, not job by job as in ``d * max(o*m/K, o/S)``: jobs
that fill the seats and jobs that fill the memory share the same steps. The dual values price each kind's resources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from broker.length_class import LengthClass
from broker.throughput import DeviceKind, Work

__all__ = ["DeviceKind", "FluidPlan", "LengthClass", "Prices", "cost_at", "solve"]

Array = NDArray[np.float64]
#: Where ``Work`` has the tokens of context held.
_CONTEXT = 3
#: Where so many jobs of a class fit into a kind's memory, what is left beside them is small.
_MANY = 4


@dataclass(frozen=True, slots=True)
class Prices:
    """What one unit of a kind's resources is worth, in seconds of the cluster."""

    own_second: float
    context_step: float
    step: float
    token: float


@dataclass(frozen=True, slots=True)
class FluidPlan:
    """The best way to share the jobs out.

    Attributes:
        seconds: least time in which all can be done.
        jobs: how many jobs each kind takes; shape (classes, kinds).
        steps: steps of all devices of each kind together; shape (kinds,).
        prices: dual values of each kind's resources.
        unplaced: indices of classes that no kind can hold; they are in none of the figures.
    """

    seconds: float
    jobs: Array
    steps: Array
    prices: tuple[Prices, ...]
    unplaced: tuple[int, ...]

    @property
    def jobs_per_s(self) -> float:
        """Jobs a second of the given mix: no scheduler does more."""
        return float(self.jobs.sum()) / self.seconds if self.seconds > 0 else float("inf")

    def seconds_of(self, kinds: Sequence[DeviceKind], work: Work, longest: int) -> float:
        """The least share of the cluster's time that a job of this work costs, on the kind where it is cheapest.

        By weak duality the sum over any set of jobs is at most the time in which any scheduler does them.
        """
        costs = [
            cost_at(kind, price, work) for kind, price in zip(kinds, self.prices, strict=True) if kind.can_hold(longest)
        ]
        return min(costs, default=0.0)


def cost_at(kind: DeviceKind, price: Prices, work: Work) -> float:
    """What a job costs on a kind at these prices, in seconds of the cluster."""
    own = kind.profile.own_seconds(work) * kind.slowdown
    return (
        price.own_second * own
        + price.context_step * work.context_steps
        + price.step * work.steps
        + price.token * work.tokens
    )


def solve(
    classes: Sequence[LengthClass],
    kinds: Sequence[DeviceKind],
    allowed: NDArray[np.bool_] | None = None,
    least_steps: Array | None = None,
    *,
    in_one_piece: bool = False,
) -> FluidPlan:
    """Solve the program with HiGHS.

    Args:
        classes: the jobs.
        kinds: the devices.
        allowed: (classes, kinds) pairs that may be used, among those where the kind can hold the class.
        least_steps: steps that the devices of each kind make at least, all together; shape (kinds,).
        in_one_piece: a job that is large beside a kind's memory takes up what no second one fits into, too. That is
            what to expect of devices with little memory, and no bound: smaller jobs may fill the gap.
    """
    fits = np.array([[kind.can_hold(c.longest) for kind in kinds] for c in classes], dtype=bool).reshape(
        len(classes), len(kinds)
    )
    if allowed is not None:
        fits &= allowed
    placeable = fits.any(axis=1) if len(kinds) else np.zeros(len(classes), dtype=bool)
    unplaced = tuple(int(i) for i in np.flatnonzero(~placeable))
    cs, ks = np.nonzero(fits)
    if not len(cs):
        return FluidPlan(0.0, np.zeros(fits.shape), np.zeros(len(kinds)), (Prices(0, 0, 0, 0),) * len(kinds), unplaced)
    program = _Program(classes, kinds, cs, ks, np.flatnonzero(placeable), in_one_piece=in_one_piece)
    return program.solve(unplaced, least_steps)


class _Program:
    """The matrices: columns are the pairs, then the kinds' steps, then T."""

    def __init__(
        self,
        classes: Sequence[LengthClass],
        kinds: Sequence[DeviceKind],
        cs: NDArray[np.intp],
        ks: NDArray[np.intp],
        rows: NDArray[np.intp],
        *,
        in_one_piece: bool,
    ) -> None:
        self._shape = (len(classes), len(kinds))
        self._cs, self._ks, self._rows = cs, ks, rows
        self._kinds = kinds
        work = np.array([c.work for c in classes], dtype=float)
        jobs = np.array([c.jobs for c in classes], dtype=float)
        # Counted in the mix's own units the numbers stay near 1, whatever the number of jobs.
        self._scale = float(jobs.sum()) or 1.0
        self._jobs = jobs / self._scale
        self._work = work[cs]
        p = [k.profile for k in kinds]
        self._rates = np.array([[q.prefill_b, q.prefill_c, q.decode_e, q.decode_f] for q in p])
        self._slow = np.array([k.slowdown for k in kinds])
        self._d = np.array([q.decode_d for q in p]) * self._slow
        self._room = np.array(
            [[q.kv_tokens, q.seats, k.max_batched_tokens] for q, k in zip(p, kinds, strict=True)], float
        )
        self._count = np.array([k.count for k in kinds], float)
        backlog = np.array([k.backlog for k in kinds], dtype=float) / self._scale
        self._gaps = self._gaps_beside() if in_one_piece else np.ones(len(cs))
        own_backlog = (backlog[:, :4] * self._rates).sum(axis=1) * self._slow
        used = backlog[:, [3, 2, 4]] / self._room
        self._backlog = np.concatenate([own_backlog, used.T.reshape(-1)])

    def _gaps_beside(self) -> Array:
        """For each pair: memory over what as many jobs hold as fit, where these are few."""
        share = self._room[self._ks, 0] / (self._work[:, 0] + self._work[:, 2] + 1)
        together = np.maximum(np.floor(share), 1)
        return np.where(together < _MANY, np.maximum(share / together, 1), 1)

    def solve(self, unplaced: tuple[int, ...], least_steps: Array | None = None) -> FluidPlan:
        pairs, n = len(self._cs), self._shape[1]
        columns = pairs + n + 1
        own = (self._work[:, :4] * self._rates[self._ks]).sum(axis=1) * self._slow[self._ks]
        kinds = np.arange(n)
        pair = np.arange(pairs)
        rows = [self._ks, kinds, kinds]
        cols = [pair, pairs + kinds, np.full(n, columns - 1)]
        values = [own, self._d, -self._count]
        # context steps, steps and tokens against memory, seats and budget, each in units of one step's room
        for i, feature in enumerate((_CONTEXT, 2, 4)):
            room = self._room[:, i]
            rows += [n * (i + 1) + self._ks, n * (i + 1) + kinds]
            cols += [pair, pairs + kinds]
            used = self._work[:, feature] / room[self._ks]
            values += [used * self._gaps if feature == _CONTEXT else used, -np.ones(n)]
        at = np.full(self._shape[0], -1)
        at[self._rows] = np.arange(len(self._rows))
        rows.append(4 * n + at[self._cs])
        cols.append(pair)
        values.append(np.ones(pairs))
        lower = np.concatenate([np.full(4 * n, -np.inf), self._jobs[self._rows]])
        upper = np.concatenate([-self._backlog, self._jobs[self._rows]])
        matrix = (np.concatenate(rows), np.concatenate(cols), np.concatenate(values))
        least = np.zeros(columns)
        if least_steps is not None:
            least[pairs : pairs + n] = least_steps / self._scale
        x, duals = _minimise_last_column(matrix, lower, upper, least)
        return self._plan(x, -duals[: 4 * n], unplaced)

    def _plan(self, x: Array, duals: Array, unplaced: tuple[int, ...]) -> FluidPlan:
        pairs, n = len(self._cs), self._shape[1]
        jobs = np.zeros(self._shape)
        jobs[self._cs, self._ks] = x[:pairs] * self._scale
        own, context, seats, tokens = duals.reshape(4, n)
        context, seats, tokens = context / self._room[:, 0], seats / self._room[:, 1], tokens / self._room[:, 2]
        prices = tuple(Prices(*map(float, of_kind)) for of_kind in zip(own, context, seats, tokens, strict=True))
        return FluidPlan(float(x[-1]) * self._scale, jobs, x[pairs : pairs + n] * self._scale, prices, unplaced)


def _minimise_last_column(
    matrix: tuple[NDArray[np.intp], NDArray[np.intp], Array], lower: Array, upper: Array, least: Array
) -> tuple[Array, Array]:
    """The x >= ``least`` with ``lower <= A x <= upper`` whose last entry is smallest; and the rows' dual values."""
    rows, cols, values = matrix
    columns = len(least)
    order = np.argsort(cols, kind="stable")
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, len(lower)
    lp.col_cost_ = np.concatenate([np.zeros(columns - 1), [1.0]])
    lp.col_lower_, lp.col_upper_ = least, np.full(columns, highspy.kHighsInf)
    lp.row_lower_, lp.row_upper_ = lower, upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(cols, minlength=columns))]).astype(np.int32)
    lp.a_matrix_.index_, lp.a_matrix_.value_ = rows[order].astype(np.int32), values[order]
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(lp)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:  # every class has a kind, and T is free to grow
        raise ArithmeticError(f"the linear program was not solved: {solver.getModelStatus()}")
    solution = solver.getSolution()
    return np.array(solution.col_value), np.array(solution.row_dual)
