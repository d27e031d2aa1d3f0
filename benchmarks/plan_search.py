"""How long the search for a plan takes, and what the plan is worth.

Time: 100 machines of eight devices of six kinds, on one core: the best plan and the runner-up; and of inventories in
which no two machines are alike; and the cheapest plan that does a batch by a deadline, at half of what all machines
could do, where every machine has a price of its own. Gain: the plan of a mixed cluster over the same tensor-parallel
degree everywhere, at the best such degree, both run in the simulator while a backlog lasts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.placing.lengths import Lengths, default_traces, draw, mixes_of
from benchmarks.planning.inventories import cores_of, inventories, priced
from benchmarks.planning.uniform import CLUSTERS, machines_of, uniform_row
from benchmarks.report import Report, Row, at_least, note, options_parser, run_benchmark
from broker.length_class import LengthClass
from planner.cheapest import cheapest
from planner.configurations import Space
from planner.estimate import Estimator, Measured
from planner.inventory import Machine
from planner.layouts import MachineType, machine_types
from planner.mix import classes_of
from planner.model_shape import known_shape
from planner.search import search
from tokenyard.simulation_input import read_known

_KINDS = ("H100-SXM-80GB", "A100-SXM4-80GB", "L40S", "RTX-4090", "L4", "T4")
_MACHINES, _DEVICES = 100, 8
_MODELS = ("Llama-3.1-8B", "Llama-3.1-70B")
_REQUESTS = 6000
_HOUR_S = 3600.0
#: Lengths where there are no traces: log-normal, of these medians (tokens) and this spread.
_MEDIANS, _SPREAD, _MOST = (1000, 150), 0.9, 8000


async def main(options: argparse.Namespace) -> Report:
    """Time the search, then simulate. The report holds the gain, and the times beside it."""
    known = [Measured.of_known(k) for k in read_known([options.data / "profiles"])] if options.data else []
    lengths = _lengths(options.data, options.seed, "all", _REQUESTS)
    times = [_timed(model, known, lengths) for model in _MODELS]
    unlike = [_searched(model, known, lengths, name, machines) for model in _MODELS for name, machines in inventories()]
    deadline = [
        _by_deadline(model, known, lengths, name, machines)
        for model in _MODELS
        for name, machines in inventories()
        if len(machines) == _MACHINES
    ]
    tables = {
        f"{_MACHINES} machines of {_DEVICES} devices: best plan and runner-up": times,
        "Inventories in which no two machines are alike: best plan and runner-up": unlike,
        "The same, every machine at a price of its own: the cheapest plan in twice the least time": deadline,
    }
    jobs = _lengths(options.data, options.seed, "code+conv+sharegpt", options.jobs)
    gains = [uniform_row(cluster, known, jobs, options.seed) for cluster in CLUSTERS]
    summary = {
        "seconds_100x8": max(float(row["seconds"] or 0) for row in times),
        "seconds_all_different": max(float(row["seconds"] or 0) for row in unlike),
        "seconds_deadline": max(float(row["seconds"] or 0) for row in deadline),
        "cpu_seconds_hardest": max(float(row["CPU s"] or 0) for row in (*times, *unlike, *deadline)),
        "gap_hardest": max(float(row["gap"] or 0) for row in (*times, *unlike, *deadline)),
        "gain_over_uniform": min(float(row["gain"] or 0) for row in gains),
    }
    notes = (
        "profiles: "
        + ("measured, other degrees predicted" if known else "rough, from public specifications (no --data)"),
        "gain: requests a second of the plan over those of the best single degree, less 1, both simulated; "
        "gain_over_uniform is the least of the column",
    )
    return Report("The plan against one degree everywhere (simulated)", gains, summary, notes=notes, tables=tables)


def _timed(model: str, known: Sequence[Measured], lengths: Lengths) -> Row:
    machines = machines_of([(_KINDS[i % len(_KINDS)], _DEVICES) for i in range(_MACHINES)])
    return _searched(model, known, lengths, "alike by kind", machines)


def _searched(
    model: str, known: Sequence[Measured], lengths: Lengths, inventory: str, machines: Sequence[Machine]
) -> Row:
    note(f"searching: {model}, {len(machines)} machines, {inventory}")
    begun, cpu = time.monotonic(), time.process_time()
    types, classes = _types(model, known, lengths, machines)
    result = search(types, classes)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    return {
        "model": model,
        "machines": len(machines),
        "inventory": inventory,
        "types": len(types),
        "layouts": sum(len(machines.all_layouts) for machines in types),
        "after dominance": sum(len(machines.layouts) for machines in types),
        "seconds": seconds,
        "CPU s": cpu,
        "tokens per s": result.best.tokens_per_s,
        "runner-up": (result.runner_up.tokens_per_s / result.best.tokens_per_s) if result.runner_up else None,
        "gap": result.best.gap,
        "runner-up's gap": result.runner_up.gap if result.runner_up else None,
    }


def _by_deadline(
    model: str, known: Sequence[Measured], lengths: Lengths, inventory: str, machines: Sequence[Machine]
) -> Row:
    """A batch that all machines together do in an hour, in two."""
    note(f"searching: {model}, {len(machines)} machines, {inventory}, a deadline")
    hosts = priced(machines)
    jobs = search(*_types(model, known, lengths, hosts)).best.jobs_per_s * _HOUR_S
    begun, cpu = time.monotonic(), time.process_time()
    types, classes = _types(model, known, lengths, hosts)
    found = cheapest(types, classes, jobs, deadline_s=2 * _HOUR_S)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    return {
        "model": model,
        "machines": len(machines),
        "inventory": inventory,
        "seconds": seconds,
        "CPU s": cpu,
        "machines used": sum(bool(planned.engines) for planned in found.machines),
        "hours": found.seconds(jobs) / _HOUR_S,
        "price": found.price(jobs),
        "gap": found.gap,
    }


def _types(
    model: str, known: Sequence[Measured], lengths: Lengths, machines: Sequence[Machine]
) -> tuple[list[MachineType], list[LengthClass]]:
    shape = known_shape(model)
    assert shape is not None
    classes = classes_of(lengths[:, 0], lengths[:, 1])
    estimator = Estimator(shape, [*known, *cores_of(model)])
    return machine_types(machines, Space(shape, (shape.dtype,)), estimator, classes), classes


def _lengths(data: Path | None, seed: int, mix: str, count: int) -> Lengths:
    if data is None:
        drawn = np.exp(np.random.default_rng(seed).normal(np.log(_MEDIANS), _SPREAD, size=(count, 2)))
        return np.clip(drawn, 1, _MOST).astype(np.int64)
    traces = {file.name: file.read() for file in default_traces(data)}
    return draw(traces, next(m for m in mixes_of(list(traces)) if m.name == mix), count, 10**9, seed)[0]


def _options() -> argparse.Namespace:
    parser = options_parser("plan_search", __doc__ or "")
    parser.add_argument("--data", type=Path, help="folder with profiles/ and traces/; without it, specifications")
    parser.add_argument("--jobs", type=at_least(100), default=12_000, help="requests that each cluster is given")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
