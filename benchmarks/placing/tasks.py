"""What is run, each piece on its own, so that some processes can share the pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

from benchmarks.placing.bound import Bound, bound_of, separate_bound
from benchmarks.placing.devices import Catalogue, Cluster
from benchmarks.placing.finite import LowerBound, lower_bound, makespan
from benchmarks.placing.headline import Headline, HeadlineSearch
from benchmarks.placing.lengths import Lengths, Mix, draw
from benchmarks.placing.steady import Steady, jobs_held, run_seconds, simulate, steady_state

#: Jobs of a mix that are looked at before it is known how many a run needs.
_FIRST_LOOK = 4000
#: Finite batches drawn, each of other jobs of the same mix.
_BATCHES = 5
#: A large cluster gets more than ``World.most_jobs``: so many times what it holds at once.
_FILLS = 4


@dataclass(frozen=True, slots=True)
class World:
    """What every run may need."""

    catalogue: Catalogue
    clusters: Mapping[str, Cluster]
    traces: Mapping[str, Lengths]
    seconds: float
    most_jobs: int
    seed: int


class Task(Protocol):
    """A piece of work. ``weight`` says about how long it takes, in any unit."""

    @property
    def weight(self) -> float: ...

    def run(self, world: World) -> Any: ...


@dataclass(frozen=True, slots=True)
class Cell:
    """A cluster and a mix of traces."""

    cluster: str
    mix: Mix

    def jobs(self, world: World) -> tuple[Lengths, int]:
        """As many jobs as a long steady state needs, and how many were left out as too long for every device."""
        cluster = world.clusters[self.cluster]
        look, _ = draw(world.traces, self.mix, _FIRST_LOOK, cluster.longest, world.seed)
        wanted = int(bound_of(look, cluster.fleet).requests_per_s * run_seconds(look, cluster, world.seconds))
        most = max(world.most_jobs, int(_FILLS * jobs_held(look, cluster)))
        return draw(world.traces, self.mix, min(max(wanted, _FIRST_LOOK), most), cluster.longest, world.seed + 1)


@dataclass(frozen=True, slots=True)
class CellBound:
    """What is known of a cell before anything is run."""

    jobs: int
    too_long: int
    requests_per_s: float
    separate_requests_per_s: float


@dataclass(frozen=True, slots=True)
class BoundTask:
    """A cell's bounds."""

    cell: Cell

    @property
    def weight(self) -> float:
        return 0.1

    def run(self, world: World) -> CellBound:
        """Two linear programs."""
        lengths, too_long = self.cell.jobs(world)
        fleet = world.clusters[self.cell.cluster].fleet
        bound = bound_of(lengths, fleet)
        return CellBound(len(lengths), too_long, bound.requests_per_s, separate_bound(lengths, fleet))


@dataclass(frozen=True, slots=True)
class SteadyTask:
    """A policy in a cell. ``factor``: predicted over true output tokens; None: learned."""

    cell: Cell
    policy: str
    factor: float | None = 1.0
    devices: int = 1

    @property
    def weight(self) -> float:
        return self.devices

    def run(self, world: World) -> Steady:
        """One simulated run."""
        cluster = world.clusters[self.cell.cluster]
        lengths, _ = self.cell.jobs(world)
        bound: Bound = bound_of(lengths, cluster.fleet)
        outcome = simulate(lengths, cluster, self.policy, world.seed, factor=self.factor)
        return steady_state(outcome, bound)


@dataclass(frozen=True, slots=True)
class Finish:
    """A finite batch: its lower bound, and the makespan (seconds)."""

    bound: LowerBound
    seconds: float

    @property
    def ratio(self) -> float:
        """Makespan over its lower bound."""
        return self.seconds / self.bound.seconds


@dataclass(frozen=True, slots=True)
class FiniteTask:
    """A policy and a batch of so many jobs."""

    cell: Cell
    policy: str
    jobs: int

    @property
    def weight(self) -> float:
        return 0.5

    def run(self, world: World) -> Finish:
        """The median of some batches, by its ratio: one batch's hangs on its one longest job."""
        finishes = [self._one(world, world.seed + i) for i in range(_BATCHES)]
        return sorted(finishes, key=lambda finish: finish.ratio)[_BATCHES // 2]

    def _one(self, world: World, seed: int) -> Finish:
        cluster = world.clusters[self.cell.cluster]
        lengths, _ = draw(world.traces, self.cell.mix, self.jobs, cluster.longest, seed)
        return Finish(lower_bound(lengths, cluster), makespan(lengths, cluster, self.policy, seed))


@dataclass(frozen=True, slots=True)
class HeadlineTask:
    """A search for a cluster, and its three runs."""

    target: float
    model: str
    mix: Mix
    jobs: int

    @property
    def weight(self) -> float:
        return 10.0

    def run(self, world: World) -> Headline | None:
        """None where no cluster of the data is like that."""
        search = HeadlineSearch(world.catalogue, self.model, world.traces, self.mix, world.seed)
        return search.find(self.target, self.jobs)


def run_tasks(tasks: Sequence[Task], world: World, processes: int) -> Iterator[tuple[Task, Any]]:
    """Run all, long ones first; each result as soon as it is there. One process: in this one."""
    ordered = sorted(tasks, key=lambda task: -task.weight)
    if processes == 1:
        for task in ordered:
            yield task, task.run(world)
        return
    with get_context("spawn").Pool(processes, _start, (world,)) as pool:  # an error here ends the other runs, too
        yield from pool.imap_unordered(_run, ordered)


_world: World | None = None


def _start(world: World) -> None:
    global _world  # once a process: the traces are much to send with every task
    _world = world


def _run(task: Task) -> tuple[Task, Any]:
    assert _world is not None, "_start comes first"
    return task, task.run(_world)
