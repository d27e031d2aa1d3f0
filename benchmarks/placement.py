"""What placement policies make of unequal devices, simulated with measured profiles and real request lengths.

Steady state: how much of the linear program's bound each policy reaches while a backlog lasts, by cluster and trace.
Headline: the gain over round robin where the sum of the parts lies as far above it as in the paper (arXiv 2504.15303).
Finite batch: the makespan of a batch (the median of some) beside the least that any scheduler needs. All of it is
simulated: the live policies and late binding, with engines modelled step by step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.placing.devices import SEATS, Catalogue, read_clusters
from benchmarks.placing.lengths import Mix, TraceFile, default_traces, mixes_of
from benchmarks.placing.steady import WINDOW_JOBS
from benchmarks.placing.tables import (
    BASELINES,
    FACTORS,
    OURS,
    finite_rows,
    headline_rows,
    length_rows,
    steady_rows,
    summary,
)
from benchmarks.placing.tasks import BoundTask, Cell, FiniteTask, HeadlineTask, SteadyTask, Task, World, run_tasks
from benchmarks.report import Report, at_least, options_parser, run_benchmark

PARTS = ("steady", "lengths", "headline", "finite")
#: How far the sum of the parts lies above round robin in the paper's two clusters.
HEADLINES = (1.225, 0.336)
#: The default cluster whose finite batch is the figure.
FINITE_CLUSTER = "A100+2xL4"
_HEADLINE_JOBS, _FINITE_JOBS = 4000, 2000
#: Least time (seconds) and most jobs of a steady state.
_SECONDS, _JOBS = 500.0, 60_000
_QUICK_SECONDS, _QUICK_JOBS, _QUICK_MIXES = 300.0, 12_000, 2
#: Clusters with more devices are left out of the table of lengths, and get only one mixture with ``--quick``.
_FEW_DEVICES = 8
_POLICIES = (OURS, *BASELINES)

_progress = Console(stderr=True, soft_wrap=True)


async def main(options: argparse.Namespace) -> Report:
    """Run everything. The report holds the steady state, and smaller tables."""
    world = _world(options)
    mixes = mixes_of(list(world.traces))
    tasks = _tasks(options, world, mixes)
    results = _run(tasks, world, options.processes)
    figures, below = summary(results)
    tables = {
        "Lengths known, learned, and off by a factor: share of the bound (simulated)": length_rows(results),
        "Over round robin, by makespan (simulated)": headline_rows(results),
        f"{_FINITE_JOBS:,} jobs: makespan over its lower bound (simulated)": finite_rows(results),
    }
    title = "Steady state: share of the bound by policy (simulated)"
    return Report(title, steady_rows(results), figures, notes=[*_notes(world), *below], tables=tables)


def _world(options: argparse.Namespace) -> World:
    """All that the runs need; whatever is wrong with the input is found here."""
    catalogue = Catalogue(options.data)
    clusters = {name: catalogue.cluster(name, parts) for name, parts in read_clusters(options.clusters).items()}
    files = [TraceFile.parse(text) for text in options.trace] or default_traces(options.data)
    traces = {file.name: file.read() for file in files}
    seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS)
    jobs = options.jobs or (_QUICK_JOBS if options.quick else _JOBS)
    return World(catalogue, clusters, traces, seconds, jobs, options.seed)


def _tasks(options: argparse.Namespace, world: World, mixes: Sequence[Mix]) -> list[Task]:
    """In the order of the tables; none twice."""
    alone, mixtures = mixes[: len(world.traces)], mixes[len(world.traces) :]
    main_mix = (mixtures or alone)[0]
    shown = (mixtures or alone)[:_QUICK_MIXES] if options.quick else mixes
    tasks: list[Task] = []
    if "steady" in options.parts:
        cells = [
            Cell(name, mix)
            for name, cluster in world.clusters.items()
            for mix in (shown[:1] if options.quick and cluster.count > _FEW_DEVICES else shown)
        ]
        tasks += [BoundTask(cell) for cell in cells]
        tasks += [SteadyTask(cell, policy, devices=_devices(world, cell)) for cell in cells for policy in _POLICIES]
    if "lengths" in options.parts:
        cells = [Cell(name, main_mix) for name, cluster in world.clusters.items() if cluster.count <= _FEW_DEVICES]
        factors = (1.0, None, *FACTORS)
        tasks += [SteadyTask(cell, OURS, factor, _devices(world, cell)) for cell in cells for factor in factors]
    if "headline" in options.parts:
        model = next(iter(read_clusters(options.clusters).values()))[0].model
        tasks += [HeadlineTask(target, model, main_mix, _HEADLINE_JOBS) for target in HEADLINES]
    if "finite" in options.parts:
        cells = [Cell(name, main_mix) for name in _figure_first(world.clusters)]
        tasks += [FiniteTask(cell, policy, _FINITE_JOBS) for cell in cells for policy in _POLICIES]
    return list(dict.fromkeys(tasks))


def _figure_first(names: Iterable[str]) -> list[str]:
    """The cluster whose finite batch is the figure comes first: the default's, or the first of a file's."""
    return sorted(names, key=lambda name: name != FINITE_CLUSTER)


def _devices(world: World, cell: Cell) -> int:
    return world.clusters[cell.cluster].count


def _run(tasks: Sequence[Task], world: World, processes: int) -> dict[Task, Any]:
    """All results, in the order of the tasks."""
    begun = time.monotonic()
    found: dict[Task, Any] = {}
    for task, result in run_tasks(tasks, world, processes):
        found[task] = result
        if not isinstance(task, BoundTask):
            seconds = time.monotonic() - begun
            _progress.print(f"{len(found)}/{len(tasks)} {seconds:5.0f} s  {task}", highlight=False, markup=False)
    return {task: found[task] for task in tasks}


def _notes(world: World) -> list[str]:
    kinds = {
        f"{label} {kind.max_batched_tokens:,} tokens a step, {kind.profile.kv_tokens:,} KV tokens"
        for cluster in world.clusters.values()
        for label, kind in cluster.kinds
    }
    return [
        f"engines: {SEATS} seats; {'; '.join(sorted(kinds))}; scheduler's window: {WINDOW_JOBS:,} jobs",
        "bound: requests a second of the linear program; separate: where each request pays for the scarcer of seats "
        "and memory itself; too long: jobs left out, no device holds them; s: simulated seconds that count",
        "policies: share of the bound, requests counted by what they cost at the program's prices; ended: throughput's "
        "requests over the bound's, by number",
        "sum: each device's own saturated rate on the mix, all together; gain: throughput over round robin; in reach: "
        "whether the longest job ends within the lower bound at the pace of full batches on its best device",
        "figures are fractions; off_by_two_loss: worst loss with all predicted outputs off by a factor of 2",
    ]


def _part_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: choose from {', '.join(PARTS)}")
    return names


def _options() -> argparse.Namespace:
    parser = options_parser("placement", __doc__ or "")
    parser.add_argument("--data", type=Path, required=True, help="folder with profiles/fits.csv, kv.csv, and traces/")
    parser.add_argument(
        "--clusters", type=Path, help="JSON: name -> list of {device, model, tp, count}, instead of ours"
    )
    parser.add_argument(
        "--trace",
        action="append",
        default=[],
        metavar="NAME=PATH:PROMPT_COLUMN:OUTPUT_COLUMN",
        help="a CSV file of request lengths, instead of those of --data; may be given several times",
    )
    parser.add_argument(
        "--parts", type=_part_names, default=PARTS, help=f"comma-separated: {', '.join(PARTS)}; else all"
    )
    parser.add_argument("--seconds", type=at_least(1.0), help="least simulated time of a steady state")
    parser.add_argument("--jobs", type=at_least(1), help="most jobs of a steady state (more on large clusters)")
    parser.add_argument("--quick", action="store_true", help="two mixtures only, shorter runs: about two minutes")
    parser.add_argument("--processes", type=at_least(1), default=_cores(), help="runs at the same time")
    return parser.parse_args()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
