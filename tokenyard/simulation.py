"""Runs simulations: the same requests under each policy, and with a changed cluster."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from broker.errors import UsageError
from broker.placement import Lengths as PredictedLengths
from broker.policies import make_policy
from planner.fleet import fleet, most_tokens
from planner.simulate import Delays, KnownLengths, Outcome, Requests, SimulatedDevice, Simulation, SpeedChange
from planner.simulation_bound import Bound
from planner.simulation_report import SimulationReport, report_of
from planner.what_if import Change, changed, parse_slow
from tokenyard.simulation_choice import ClusterFound


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs share.

    Attributes:
        seed: of all chance.
        policies: names of the placement policies to compare.
        lengths: ``learned`` as they are live, ``known``, or ``xFACTOR`` of the true output lengths.
        slow: changes of speed, as ``parse_slow`` reads them.
        window_jobs: jobs that the scheduler sees.
        round_trip_s: time that a device queue hides.
        step_overhead_s: seconds the host adds to each step of an engine.
    """

    seed: int
    policies: tuple[str, ...] = ("throughput",)
    lengths: str = "learned"
    slow: tuple[str, ...] = ()
    window_jobs: int = 4096
    round_trip_s: float = 0.02
    step_overhead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Requests and a cluster to run them on."""

    requests: Requests
    devices: list[SimulatedDevice]
    bound: Bound

    @classmethod
    def of(cls, requests: Requests, devices: list[SimulatedDevice]) -> Scene:
        """With their bound."""
        return cls(requests, devices, Bound(requests, devices))


@dataclass(frozen=True, slots=True)
class Run:
    """A run: where, what became of it, and its figures."""

    scene: Scene
    outcome: Outcome
    report: SimulationReport


def scenes(requests: Requests, cluster: ClusterFound, what_if: Sequence[Change]) -> tuple[list[Scene], int]:
    """The cluster as it is and, where asked, as it would be; and how many requests fit none of its devices.

    These are left out: the same jobs run in both.

    Raises:
        UsageError: a device is not known, or no request fits.
    """
    clusters = [fleet(cluster.entries, cluster.known, cluster.files)]
    if what_if:
        clusters.append(fleet(changed(cluster.entries, what_if), cluster.known, cluster.files))
    longest = min(most_tokens(devices) for devices in clusters)
    fits = requests.prompt_tokens + requests.output_tokens <= longest
    if not fits.any():
        raise UsageError(f"no request fits: the largest device holds {longest:,} tokens")
    kept = Requests(requests.arrivals[fits], requests.prompt_tokens[fits], requests.output_tokens[fits])
    return [Scene.of(kept, devices) for devices in clusters], int((~fits).sum())


def check(setting: Setting, found: Sequence[Scene]) -> None:
    """Say what is wrong with a setting before any run, which may take minutes.

    Raises:
        UsageError: there is no such policy, or something else makes no sense.
    """
    for scene in found:
        predictions(setting.lengths, scene.requests)
        _speed_changes(setting, scene)
    for policy in setting.policies:
        make_policy(policy)


def simulate(scene: Scene, policy: str, setting: Setting, say: Callable[[str], None]) -> Run:
    """One run. The same arguments give the same figures.

    Args:
        scene: what to run where.
        policy: name of a placement policy.
        setting: the rest.
        say: is told that it begins.

    Raises:
        UsageError: there is no such policy, or a setting makes no sense.
    """
    placing = make_policy(policy)
    lengths = predictions(setting.lengths, scene.requests)
    say(f"simulating {len(scene.requests):,} jobs on {len(scene.devices):,} devices, policy {policy}")
    simulation = Simulation(
        scene.requests,
        scene.devices,
        placing,
        random.Random(setting.seed),
        lengths=lengths,
        window_jobs=setting.window_jobs,
        delays=Delays(round_trip_s=setting.round_trip_s),
        step_overhead_s=setting.step_overhead_s,
        changes=_speed_changes(setting, scene),
    )
    outcome = simulation.run()
    return Run(scene, outcome, report_of(policy, scene.requests, scene.devices, outcome, scene.bound))


def _speed_changes(setting: Setting, scene: Scene) -> list[SpeedChange]:
    return [change for text in setting.slow for change in parse_slow(text, scene.devices)]


def predictions(text: str, requests: Requests) -> PredictedLengths | None:
    """What the scheduler knows of lengths; None: it learns them.

    Raises:
        UsageError: it is none of ``learned``, ``known`` and ``xFACTOR``.
    """
    if text == "learned":
        return None
    factor = re.fullmatch(r"x(\d*\.?\d+)", text)
    if text != "known" and not (factor and float(factor[1]) > 0):
        raise UsageError(f"--lengths {text}: give learned, known, or a factor by which they are off, such as x2")
    return KnownLengths(requests, float(factor[1]) if factor else 1.0)


def generator(seed: int) -> np.random.Generator:
    """The source of chance for what comes in."""
    return np.random.default_rng(seed)
