"""Plans as a person asks for them: from files and, where it runs, the pool; with what-ifs, a budget, a deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from broker.errors import InputFileError, UsageError
from broker.heartbeat import Heartbeat
from broker.length_class import LengthClass
from broker.profiles import ProfileRecord, is_record
from planner.cheapest import cheapest
from planner.cluster_plan import ClusterPlan, Throughput, expected_plan, throughput
from planner.configurations import Misfit, Space
from planner.estimate import Estimator, Measured
from planner.inventory import Machine, changed
from planner.inventory_planning import as_expected
from planner.layouts import MachineType, machine_types
from planner.mix import classes_of, parse_lengths
from planner.model_shape import DTYPE_BYTES, ModelShape
from planner.reach import as_reached
from planner.search import SearchResult, search
from planner.what_if import Change, parse_devices
from tokenyard.kernel_database import known_rates
from tokenyard.known_devices import known_device
from tokenyard.profile_file import read_profile_file
from tokenyard.simulation_choice import RequestChoice, find_requests
from tokenyard.simulation_input import read_known

#: No engine runs more requests at once.
_MOST_SEATS = 10**6


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """What a plan is made for.

    Attributes:
        machines: the inventory.
        space: the model, and what may be chosen.
        names: what profiles may call the model.
        what_if: devices more and fewer to compare with; none where not asked for.
        deadline_s: seconds in which the batch must be done.
        budget: most that it may cost.
    """

    machines: tuple[Machine, ...]
    space: Space
    names: tuple[str, ...] = ()
    what_if: tuple[Change, ...] = ()
    deadline_s: float | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Today:
    """What the running pool does at best on the mix.

    Attributes:
        workers: those whose profile is known.
        unknown: names of those of which it is not.
        throughput: of the known ones.
    """

    workers: int
    unknown: tuple[str, ...]
    throughput: Throughput


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """All that was found.

    Attributes:
        result: the best plan and the runner-up.
        idle: machines that can run nothing, each with the nearest misfit.
        today: the running pool, where there is one.
        what_if: the best plan with other devices.
        batch: the plan for a budget or a deadline.
        jobs: jobs of the batch.
        unwatched: hosts of the inventory without a supervisor, where there is a pool that has some.
    """

    result: SearchResult
    idle: tuple[tuple[str, Misfit], ...]
    today: Today | None
    what_if: ClusterPlan | None
    batch: ClusterPlan | None
    jobs: float
    unwatched: tuple[str, ...] = ()


def make_plan(
    choice: PlanChoice,
    classes: Sequence[LengthClass],
    jobs: float,
    measured: Sequence[Measured],
    beats: Mapping[str, Heartbeat | None] | None,
) -> PlanOutcome:
    """Search.

    Args:
        choice: what is asked for.
        classes: the mix of lengths.
        jobs: requests of the batch, for budget and deadline.
        measured: what is known of devices.
        beats: heartbeats of the running pool, where there is one.

    Raises:
        UsageError: nothing fits, or nothing reaches what was asked for; says by how much.
    """
    estimator = Estimator(choice.space.shape, measured, choice.names, known_rates())
    types = machine_types(choice.machines, choice.space, estimator, classes)
    result = search(types, classes)
    what_if = None
    if choice.what_if:
        other = machine_types(changed(choice.machines, choice.what_if), choice.space, estimator, classes)
        what_if = expected_plan(search(other, classes).best, classes)
    batch = None
    if choice.deadline_s is not None or choice.budget is not None:
        if not jobs:
            raise UsageError("--deadline and --budget need to know how many requests: give --jobs")
        batch = cheapest(types, classes, jobs, deadline_s=choice.deadline_s, budget=choice.budget)
    today = _today(beats, classes) if beats else None
    return PlanOutcome(as_expected(result, classes), _idle(types), today, what_if, batch, jobs)


def space_of(
    shape: ModelShape,
    dtypes: Sequence[str],
    seats: Sequence[int],
    utilization: float,
    context_tokens: int,
) -> Space:
    """What may be chosen, from the options of the command line; empty means the default.

    Raises:
        UsageError: a precision is not known, or there are no seats.
    """
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPE_BYTES]:
        raise UsageError(f"--dtype {unknown[0]}: give one of {', '.join(DTYPE_BYTES)}")
    if wrong := [n for n in seats if not 1 <= n <= _MOST_SEATS]:
        raise UsageError(f"--seats {wrong[0]}: give 1 to {_MOST_SEATS:,}")
    space = Space(shape, tuple(dict.fromkeys(dtypes)) or (shape.dtype,))
    chosen = tuple(sorted(set(seats))) or space.seats
    return replace(space, seats=chosen, utilization=utilization, context_tokens=context_tokens)


def read_mix(
    lengths: Sequence[str], requests: RequestChoice, rng: np.random.Generator, max_line_bytes: int
) -> tuple[list[LengthClass], int]:
    """The mix that is asked for, and how many requests it has.

    Raises:
        InputFileError: a file cannot be read.
        UsageError: nothing is asked for, or two things; or it makes no sense.
    """
    files = requests.trace is not None or requests.batch is not None
    if bool(lengths) == files:
        raise UsageError("say which requests, one way: --lengths 1000,200, --trace FILE.csv or --batch FILE.jsonl")
    if lengths:
        classes = parse_lengths(lengths)
        return classes, requests.jobs or 0
    found, _ = find_requests(requests, rng, max_line_bytes)
    return classes_of(found.prompt_tokens, found.output_tokens), len(found)


def read_measured(paths: Sequence[Path], records: Sequence[ProfileRecord]) -> list[Measured]:
    """What is known of devices: the pool's records, and files as ``tokenyard simulate --profiles`` takes them.

    Raises:
        InputFileError: a file cannot be read.
        UsageError: a file is no profile; names it.
    """
    found: list[Measured] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        known = read_known([path])
        of_file = [read_profile_file(file).record for file in files if is_record(_bytes(file))]
        seen = {record.profile for record in of_file if record}
        found += [Measured.of_record(record) for record in of_file if record]
        found += [Measured.of_known(device) for device in known if device.profile not in seen]
    return [*found, *(Measured.of_record(record) for record in records)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None


def check_models(measured: Sequence[Measured], shape: ModelShape, names: Sequence[str]) -> None:
    """Say that profiles were given and not one is of this model.

    Raises:
        UsageError: so it is; names the models they are of.
    """
    estimator = Estimator(shape, measured, names)
    if measured and not any(estimator.own(m.device) for m in measured):
        models = ", ".join(sorted({m.model or "no named model" for m in measured}))
        raise UsageError(
            f"the profiles are of {models}, none of {shape.name}: measure it with `tokenyard profile`, give the right "
            "--profiles, or say with --served-name what they call it"
        )


def parse_what_if(text: str | None) -> tuple[Change, ...]:
    """The changes of ``--what-if``.

    Raises:
        UsageError: they are not of the form ``+2xL4``.
    """
    return tuple(parse_devices(text)) if text else ()


def _today(beats: Mapping[str, Heartbeat | None], classes: Sequence[LengthClass]) -> Today | None:
    known = {name: known_device("", beat).kind for name, beat in beats.items() if beat is not None}
    if not known:
        return None
    kinds = Counter(kind for kind in known.values() if kind is not None)
    counted = [replace(kind, count=count) for kind, count in kinds.items()]
    found = throughput(classes, as_reached(counted, classes))
    return Today(kinds.total(), tuple(name for name, kind in known.items() if kind is None), found)


def _idle(types: Sequence[MachineType]) -> tuple[tuple[str, Misfit], ...]:
    found: list[tuple[str, Misfit]] = []
    for machines in types:
        if any(machines.layouts):
            continue
        nearest = min(machines.misfits, key=lambda misfit: misfit.short_bytes or 2**62, default=None)
        kind = machines.machine.groups[0].kind
        reason = nearest or Misfit(kind, 0, "the model cannot be split over its devices")
        found += [(name, reason) for name in machines.names]
    return tuple(found)
