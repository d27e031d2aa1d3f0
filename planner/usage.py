"""Which machines to pay for, where price counts: a knapsack. Pure.

With the values that the relaxation gives to jobs and engines, no machines do more jobs a second than their engines are
worth together, whatever they run: the program's rows, added up with these weights. What is left of the program is one
row, and a whole number of machines of each type and price. Its solution bounds the program's, and better than the
relaxation does, which may use half a machine; and it is the right choice but for what is lost where the machines chosen
do a little less than they are worth. By so much more is asked for in the next round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import highspy
import numpy as np

from planner.mixed_integer import FEASIBLE, Solution, Terms
from planner.program_rows import ProgramRows
from planner.relaxation import Relaxed
from planner.sparse_rows import Array, Index, Model

_ROUNDS = 4
#: Layouts are tried that are worth less than the best by this share: of few machines, of many.
_LESS, _TIED, _FEW = 3e-3, 1e-6, 20
#: A knapsack is solved to this share of what the gap is a share of, or for so long (seconds).
_GAP, _LIMIT_S = 1e-5, 1.0
#: A rate that is short by this share reaches what was asked for.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Usage:
    """Machines to use.

    Attributes:
        machines: of each u.
        rate: what they are worth, in the units of the program.
        bound: no solution of the program has a lower objective, where nothing more was asked for.
        seconds: what it took.
    """

    machines: Array
    rate: float
    bound: float
    seconds: float


#: Solves a program with the machines that are used given; None where it has no solution.
Solve = Callable[[Model, Index], Solution | None]


def by_usage(
    rows: ProgramRows, model: Model, relaxed: Relaxed, terms: Terms, solve: Solve
) -> tuple[Solution | None, float, float]:
    """The best solution with machines that the knapsack chooses, or None; the bound; and the seconds it took.

    Args:
        rows: what the columns are.
        model: the program.
        relaxed: its relaxation.
        terms: when to end.
        solve: for a program with given machines, and layouts of interest.
    """
    _, engines = rows.worth(relaxed.prices)
    worth = rows.layouts_worth(engines)
    best: Solution | None = None
    bound, spent, more = relaxed.bound, 0.0, 0.0
    for _ in range(_ROUNDS):
        chosen = _knapsack(rows, model, worth, more, terms)
        if chosen is None:
            break
        spent += chosen.seconds
        bound = max(bound, chosen.bound) if not more else bound
        found = solve(_given(rows, model, chosen.machines), _layouts(rows, relaxed, worth, chosen.machines))
        if found is None:
            break
        spent += found.seconds
        rate = float(found.values[rows.rate])
        if _reaches(rows, model, found.values) and (best is None or found.objective < best.objective):
            best = found
        lost = chosen.rate / rate - 1 if rate > 0 else 0.0
        done = best is not None and best.objective - bound <= terms.allowed(best.objective)
        if done or lost <= more or spent >= terms.prove_s:
            break
        more = lost
    return best, bound, spent


def _layouts(rows: ProgramRows, relaxed: Relaxed, worth: Array, machines: Array) -> Index:
    """Of the machines in use the columns z that the relaxation uses, and those worth most."""
    used = relaxed.values[rows.z - rows.pairs : rows.u - rows.pairs] > 1e-6
    types = np.array([m for m, _ in rows.columns])
    most = np.zeros(len(rows.types))
    np.maximum.at(most, types, worth)
    paid = np.bincount([m for m, _, _ in rows.tiers], machines, len(rows.types))
    less = _LESS if machines.sum() <= _FEW else _TIED
    return rows.z + np.flatnonzero((paid[types] > 0) & (used | (worth >= most[types] * (1 - less))))


def _knapsack(rows: ProgramRows, model: Model, worth: Array, more: float, terms: Terms) -> Usage | None:
    """Machines that are worth more than the rate, by a share; None where there are none."""
    most = np.zeros(len(rows.types))
    np.maximum.at(most, [m for m, _ in rows.columns], worth)
    tiers = np.arange(rows.u, rows.w)
    columns = np.append(tiers, rows.rate)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(columns), 1
    lower = model.lower[columns]
    for i, (m, _, machines) in enumerate(rows.tiers):
        lower[i] = machines if rows.types[m].machine.min_workers else 0.0
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = model.costs[columns], lower, model.upper[columns]
    lp.integrality_ = [highspy.HighsVarType.kInteger] * len(tiers) + [highspy.HighsVarType.kContinuous]
    values = np.append([most[m] for m, _, _ in rows.tiers], -(1 + more))
    lp.row_lower_, lp.row_upper_ = np.array([0.0]), np.array([highspy.kHighsInf])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.array([0, len(columns)], dtype=np.int32)
    lp.a_matrix_.index_, lp.a_matrix_.value_ = np.arange(len(columns), dtype=np.int32), values
    solver = highspy.Highs()
    options = (("output_flag", False), ("threads", 1), ("time_limit", min(_LIMIT_S, terms.limit_s)))
    for option, chosen in (*options, ("mip_rel_gap", 0.0), ("mip_abs_gap", _GAP * terms.of_value)):
        solver.setOptionValue(option, chosen)
    solver.passModel(lp)
    solver.run()
    info, found = solver.getInfo(), np.array(solver.getSolution().col_value)
    if info.primal_solution_status != FEASIBLE or not len(found):
        return None
    used = np.round(found[:-1]).astype(np.float64)
    return Usage(used, float(used @ values[:-1]), float(info.mip_dual_bound), solver.getRunTime())


def _given(rows: ProgramRows, model: Model, machines: Array) -> Model:
    """The program with these machines used, whatever they reach."""
    lower, upper = model.lower.copy(), model.upper.copy()
    lower[rows.u : rows.w] = upper[rows.u : rows.w] = machines
    lower[rows.rate] = 0.0
    return replace(model, lower=lower, upper=upper)


def _reaches(rows: ProgramRows, model: Model, values: Array) -> bool:
    return bool(values[rows.rate] >= model.lower[rows.rate] * (1 - _SAME))


def greedy_price(rows: ProgramRows, worth: Array, least_rate: float) -> float | None:
    """Price an hour for each job a second of the machines with the best value for money that reach a rate together.

    Args:
        rows: what the columns are.
        worth: of each z, jobs a second.
        least_rate: jobs a second to reach; the last machine is taken in part. 0: the best one alone.
    """
    most = np.zeros(len(rows.types))
    np.maximum.at(most, [m for m, _ in rows.columns], worth)
    price, left = 0.0, least_rate
    offers = [
        (float(cost / most[m]), cost, float(most[m])) for m, cost, n in rows.tiers if most[m] > 0 for _ in range(n)
    ]
    if least_rate <= 0:
        return min(offers)[0] if offers else None
    for _, cost, rate in sorted(offers):
        part = min(left / rate, 1.0)
        price, left = price + part * cost, left - part * rate
        if left <= 0:
            return price / least_rate
    return None
