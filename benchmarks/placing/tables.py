"""The tables of ``benchmarks.placement``, and the figures it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

from benchmarks.placing.headline import Headline
from benchmarks.placing.steady import Steady
from benchmarks.placing.tasks import BoundTask, Cell, CellBound, Finish, FiniteTask, HeadlineTask, SteadyTask, Task
from benchmarks.report import Row, Value

OURS = "throughput"
BASELINES = ("capacity", "power_of_two", "least_outstanding", "round_robin")
#: Predicted over true output tokens, in the runs that show what predictions are worth.
FACTORS = (2.0, 0.5)

Results = Mapping[Task, Any]
_T = TypeVar("_T")


def steady_rows(results: Results) -> list[Row]:
    """Share of the bound by cell and policy."""
    return [_steady_row(cell, bound, by_policy) for cell, bound, by_policy in _cells(results)]


def length_rows(results: Results) -> list[Row]:
    """Share of the bound by what is known of the lengths."""
    rows: list[Row] = []
    for task in _tasks(results, SteadyTask):
        if task.factor is None:
            shares = {factor: _share(results, task.cell, factor) for factor in (1.0, None, *FACTORS)}
            rows.append(
                {
                    "cluster": task.cell.cluster,
                    "requests": task.cell.mix.name,
                    "known": shares[1.0],
                    "learned": shares[None],
                    **{f"times_{factor:g}": shares[factor] for factor in FACTORS},
                    "worst_loss_%": 100 * max(1 - shares[factor] / shares[1.0] for factor in FACTORS),
                }
            )
    return rows


def finite_rows(results: Results) -> list[Row]:
    """Makespan over its lower bound by cell and policy, each that of the median batch; the times are of ours."""
    rows: list[Row] = []
    for task in _tasks(results, FiniteTask):
        if task.policy == OURS:
            finish: Finish = results[task]
            bound = finish.bound
            others = {
                other.policy: results[other].ratio
                for other in _tasks(results, FiniteTask)
                if other.cell == task.cell and other.policy != OURS
            }
            rows.append(
                {
                    "cluster": task.cell.cluster,
                    "work_s": bound.work,
                    "longest_alone_s": bound.longest_alone,
                    "in_full_batch_s": bound.longest_in_batch,
                    "makespan_s": finish.seconds,
                    OURS: finish.ratio,
                    **others,
                    "in_reach": "yes" if bound.reachable else "no",
                }
            )
    return rows


def headline_rows(results: Results) -> list[Row]:
    """Gains over round robin."""
    return [
        {
            "cluster": found.cluster,
            "sum_per_s": found.sum_of_parts,
            "rr_per_s": found.round_robin,
            "sum_over_rr": found.parts_over_rr,
            "throughput_per_s": found.throughput,
            "gain": found.gain,
            "target": found.target,
            "beyond": found.gain - found.target,
            "over_sum": found.throughput / found.sum_of_parts - 1,
        }
        for found in _headlines(results)
        if found is not None
    ]


def summary(results: Results) -> tuple[dict[str, Value], list[str]]:
    """The figures; and in words which cells lie below a baseline."""
    cells = list(_cells(results))
    ours = [by_policy[OURS].share_of_bound for _, _, by_policy in cells]
    below = [
        f"{cell.cluster}, {cell.mix.name}: {policy} {steady.share_of_bound:.4f}, {OURS} {share:.4f}"
        for share, (cell, _, by_policy) in zip(ours, cells, strict=True)
        for policy, steady in by_policy.items()
        if steady.share_of_bound > share
    ]
    figures: dict[str, Value] = {}
    if cells:
        places = {line.partition(": ")[0] for line in below}
        figures = {
            "median_share_of_bound": median(ours),
            "worst_share_of_bound": min(ours),
            "cells_below_baseline": len(places),
        }
    if lengths := length_rows(results):
        figures["learned_share"] = median(_float(row["learned"]) for row in lengths)
        figures["off_by_two_loss"] = max(_float(row["worst_loss_%"]) for row in lengths) / 100
    for name, found in zip(("a", "b"), _headlines(results), strict=False):
        figures[f"gain_over_rr_{name}"] = found.gain if found is not None else None
    if finite := finite_rows(results):
        figures["makespan_over_lower_bound"] = _float(finite[0][OURS])
    refused = [
        f"refused: {cell.cluster}, {cell.mix.name}: {policy}: {steady.refused} jobs on a device that cannot hold them"
        for cell, _, by_policy in cells
        for policy, steady in by_policy.items()
        if steady.refused
    ]
    return figures, [f"below a baseline: {line}" for line in below] + refused


def _steady_row(cell: Cell, bound: CellBound, by_policy: Mapping[str, Steady]) -> Row:
    ours = by_policy[OURS]
    return {
        "cluster": cell.cluster,
        "requests": cell.mix.name,
        "jobs": bound.jobs,
        "too_long": bound.too_long,
        "s": ours.seconds,
        "bound": bound.requests_per_s,
        "separate": bound.separate_requests_per_s,
        "ended": ours.share_of_requests,
        **{policy: by_policy[policy].share_of_bound for policy in (OURS, *BASELINES) if policy in by_policy},
    }


def _cells(results: Results) -> Sequence[tuple[Cell, CellBound, dict[str, Steady]]]:
    by_cell: dict[Cell, dict[str, Steady]] = {}
    for task in _tasks(results, SteadyTask):
        if task.factor == 1.0:
            by_cell.setdefault(task.cell, {})[task.policy] = results[task]
    bounds = {task.cell: results[task] for task in _tasks(results, BoundTask)}
    return [(cell, bounds[cell], by_policy) for cell, by_policy in by_cell.items() if cell in bounds]


def _headlines(results: Results) -> list[Headline | None]:
    return [results[task] for task in _tasks(results, HeadlineTask)]


def _share(results: Results, cell: Cell, factor: float | None) -> float:
    [share] = [
        results[task].share_of_bound
        for task in _tasks(results, SteadyTask)
        if (task.cell, task.policy, task.factor) == (cell, OURS, factor)
    ]
    return share


def _tasks(results: Results, kind: type[_T]) -> list[_T]:
    return [task for task in results if isinstance(task, kind)]


def _float(value: Value) -> float:
    assert isinstance(value, float)
    return value
