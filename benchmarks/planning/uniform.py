"""The plan of a mixed cluster beside the same tensor-parallel degree everywhere, both run in the simulator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.cluster import BenchmarkError
from benchmarks.placing.lengths import Lengths
from benchmarks.report import Row, note
from broker.length_class import LengthClass
from broker.policies import make_policy
from planner.cluster_plan import ClusterPlan
from planner.configurations import Space
from planner.device_catalogue import find_spec
from planner.estimate import Estimator, Measured
from planner.inventory import DeviceGroup, Machine, linked
from planner.layouts import machine_types
from planner.mix import classes_of
from planner.model_shape import known_shape
from planner.search import NoPlanError, search
from planner.simulate import KnownLengths, Requests, SimulatedDevice, Simulation
from planner.simulation_bound import Bound

DEGREES = (1, 2, 4, 8)
_SEATS = 256
#: The scheduler's window: what waits beyond it is the backlog.
_WINDOW_JOBS = 1024
#: Degrees whose prediction is below this share of the best degree's are not simulated.
_NEAR = 0.8


@dataclass(frozen=True, slots=True)
class MixedCluster:
    """Machines of unequal devices: name of the device and number of devices of each machine."""

    name: str
    model: str
    machines: tuple[tuple[str, int], ...]


CLUSTERS = (
    MixedCluster("A100x2 + T4x8", "Llama-3.1-8B", (("A100-SXM4-80GB", 2), ("T4", 8))),
    MixedCluster("A100 + L4x2 + T4x8", "Llama-3.1-8B", (("A100-SXM4-80GB", 1), ("L4", 2), ("T4", 8))),
    MixedCluster("A100x4 + L40Sx4 + L4x8", "Qwen3-32B", (("A100-SXM4-80GB", 4), ("L40S", 4), ("L4", 8))),
    MixedCluster("A100x8 + L4x8", "Llama-3.1-70B", (("A100-SXM4-80GB", 8), ("L4", 8))),
)


def machines_of(devices: Sequence[tuple[str, int]]) -> tuple[Machine, ...]:
    """One machine for each kind of device and its number."""
    return tuple(Machine(f"m{i}", (_group(kind, count),), linked([kind])) for i, (kind, count) in enumerate(devices))


def uniform_row(cluster: MixedCluster, known: Sequence[Measured], lengths: Lengths, seed: int) -> Row:
    """What the plan reaches in the simulator, and what the best single degree does."""
    classes = classes_of(lengths[:, 0], lengths[:, 1])
    best = plan(cluster, known, classes, ())
    uniform = {degree: found for degree in DEGREES if (found := _plan_or_none(cluster, known, classes, degree))}
    longest = min(_longest(found) for found in (best, *uniform.values()))
    fitting = lengths[lengths.sum(axis=1) <= longest]
    rates = {degree: simulated_rate(found, fitting, seed) for degree, found in _promising(uniform).items()}
    degree = max(rates, key=lambda n: rates[n])
    ours = simulated_rate(best, fitting, seed)
    return {
        "cluster": cluster.name,
        "model": cluster.model,
        "plan": _words(best),
        "requests per s": ours,
        "best uniform": f"tp {degree}",
        "its requests per s": rates[degree],
        "gain": ours / rates[degree] - 1,
        "predicted gain": best.jobs_per_s / uniform[degree].jobs_per_s - 1,
    }


def _promising(uniform: Mapping[int, ClusterPlan]) -> dict[int, ClusterPlan]:
    """Those whose prediction comes near the best one's."""
    most = max(found.jobs_per_s for found in uniform.values())
    return {degree: found for degree, found in uniform.items() if found.jobs_per_s >= _NEAR * most}


def plan(
    cluster: MixedCluster, known: Sequence[Measured], classes: Sequence[LengthClass], degrees: tuple[int, ...]
) -> ClusterPlan:
    """The best plan of a cluster; with degrees, of these alone."""
    shape = known_shape(cluster.model)
    if shape is None:
        raise NoPlanError(f"the shape of {cluster.model} is not known")
    space = Space(shape, (shape.dtype,), (_SEATS,), degrees=degrees)
    return search(machine_types(machines_of(cluster.machines), space, Estimator(shape, known), classes), classes).best


def simulated_rate(found: ClusterPlan, lengths: Lengths, seed: int) -> float:
    """Requests a second of the mix under the live scheduler with known lengths, while a backlog lasts.

    Raises:
        BenchmarkError: the requests are too few for a steady state.
    """
    requests = Requests(np.zeros(len(lengths)), lengths[:, 0], lengths[:, 1])
    devices = list(_devices(found))
    note(f"simulating {len(lengths):,} requests on {_words(found)}")
    simulation = Simulation(
        requests,
        devices,
        make_policy("throughput"),
        random.Random(seed),
        lengths=KnownLengths(requests),
        window_jobs=_WINDOW_JOBS,
    )
    reached = Bound(requests, devices).reached(simulation.run())
    if reached.steady_share is None:
        raise BenchmarkError(f"no steady state on {_words(found)}: {reached.note}: raise --jobs")
    return reached.steady_share * reached.bound_jobs_per_s


def _plan_or_none(
    cluster: MixedCluster, known: Sequence[Measured], classes: Sequence[LengthClass], degree: int
) -> ClusterPlan | None:
    try:
        return plan(cluster, known, classes, (degree,))
    except NoPlanError:
        return None


def _devices(found: ClusterPlan) -> Iterator[SimulatedDevice]:
    number = 0
    for planned in found.machines:
        for option, count in planned.engines:
            for _ in range(count):
                number += 1
                yield SimulatedDevice(f"{option.label}-{number}", replace(option.kind, count=1), label=option.label)


def _longest(found: ClusterPlan) -> int:
    return max(device.kind.context_tokens // 16 * 16 for device in _devices(found))


def _group(kind: str, count: int) -> DeviceGroup:
    spec = find_spec(kind)
    if spec is None:
        raise NoPlanError(f"the device {kind} is not known")
    return DeviceGroup(kind, count, spec.memory_bytes)


def _words(found: ClusterPlan) -> str:
    return ", ".join(f"{share.engines} x {share.option.label}" for share in found.shares)
