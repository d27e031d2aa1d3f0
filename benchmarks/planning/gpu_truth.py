"""Configurations of GPUs predicted from tensor-parallel degrees 1 and 2, beside what was measured at 4 and 8.

What is held back is never looked at: the law is fitted to profiles of at most degree 2. Where a model fits neither one
device nor two, or only two, the part that does not divide is taken from the other models on the same device.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.cluster import BenchmarkError
from benchmarks.placing.devices import batched_tokens
from benchmarks.placing.lengths import default_traces, draw, mixes_of
from benchmarks.report import Row, Value
from broker.length_class import LengthClass
from broker.throughput import DeviceKind, Profile
from planner.cluster_plan import throughput
from planner.configurations import EngineOption, Space
from planner.device_catalogue import find_spec
from planner.estimate import Estimator, Measured
from planner.inventory import NVLINK, PCIE, DeviceGroup, Machine
from planner.layouts import MachineType, machine_types
from planner.mix import classes_of
from planner.model_shape import ModelShape, known_shape
from planner.roofline import roofline
from planner.search import search
from tokenyard.simulation_input import read_known

DEVICES = ("A100-SXM4-80GB", "H100-SXM-80GB")
MODELS = ("Llama-3.1-8B", "Llama-3.1-70B")
#: Highest degree that the planner is shown, and devices of the machine it plans for.
_SHOWN_DEGREE, _MACHINE_DEVICES = 2, 8
_SEATS = 512
_GIB = 1 << 30
_REQUESTS, _LONGEST = 6000, 10**9
#: With less room for KV cache than this (tokens) an engine holds few requests of a trace.
LEAST_KV_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a kind of device: what the planner is shown, and all that was measured."""

    device: str
    shape: ModelShape
    shown: Estimator
    whole: Estimator
    degrees: tuple[int, ...]

    @property
    def shown_degrees(self) -> list[int]:
        """Degrees of this model that the planner is shown."""
        return sorted({m.units for m in self.shown.own(self.device)})


def cases(data: Path, devices: Sequence[str], models: Sequence[str]) -> list[Case]:
    """The pairs that were measured at a degree which is shown, and at a higher one.

    Raises:
        BenchmarkError: there is none, or a model's shape is not known.
    """
    known = [Measured.of_known(k) for k in read_known([data / "profiles"]) if k.device in devices and k.model in models]
    known = [replace(m, max_batched_tokens=batched_tokens(m.profile)) for m in known]
    shown = [m for m in known if m.units <= _SHOWN_DEGREE]
    found: list[Case] = []
    for device in devices:
        for model in models:
            shape = known_shape(model)
            if shape is None:
                raise BenchmarkError(f"the shape of the model {model!r} is not known")
            degrees = tuple(sorted(m.units for m in known if (m.device, m.model) == (device, model)))
            if degrees and degrees[0] <= _SHOWN_DEGREE < degrees[-1]:
                found.append(Case(device, shape, Estimator(shape, shown), Estimator(shape, known), degrees))
    if not found:
        raise BenchmarkError(f"{data}/profiles has no device and model measured at degrees up to 2 and above")
    return found


def mixes(data: Path, seed: int) -> Mapping[str, list[LengthClass]]:
    """Length classes of each trace alone and of mixtures, by name."""
    traces = {file.name: file.read() for file in default_traces(data)}
    found: dict[str, list[LengthClass]] = {}
    for mix in mixes_of(list(traces)):
        lengths, _ = draw(traces, mix, _REQUESTS, _LONGEST, seed)
        found[mix.name] = classes_of(lengths[:, 0], lengths[:, 1])
    return found


def prediction_rows(found: Sequence[Case], of_mixes: Mapping[str, Sequence[LengthClass]]) -> list[Row]:
    """The error of the throughput that is predicted for one engine, by degree that was held back, as a share."""
    rows: list[Row] = []
    for case in found:
        predicted, measured = (options(case, estimator) for estimator in (case.shown, case.whole))
        for degree in case.degrees:
            if degree <= _SHOWN_DEGREE:
                continue
            errors = {
                name: _rate(predicted[degree], classes) / _rate(measured[degree], classes) - 1
                for name, classes in of_mixes.items()
            }
            basis = "tp " + " and ".join(map(str, case.shown_degrees))
            rows.append({"device": case.device, "model": case.shape.name, "tp": degree, "from": basis, **errors})
    return rows


def choice_rows(found: Sequence[Case], of_mixes: Mapping[str, Sequence[LengthClass]]) -> list[Row]:
    """What the plan for a machine of eight devices reaches, by the measured times, as a share of the best layout's."""
    rows: list[Row] = []
    for case in found:
        for name, classes in of_mixes.items():
            chosen = search([_machine(case, case.shown, classes)], classes).best
            everything = search([_machine(case, case.whole, classes)], classes)
            best = everything.best
            measured = options(case, case.whole)
            engines = chosen.machines[0].engines
            kinds = [replace(measured[option.units].kind, count=count) for option, count in engines]
            reached = throughput(classes, kinds)
            complete = reached.unplaced <= everything.left_out + 1e-9
            rows.append(
                {
                    "device": case.device,
                    "model": case.shape.name,
                    "mix": name,
                    "chosen": _words(engines),
                    "best measured": _words(best.machines[0].engines),
                    "share": reached.jobs_per_s / best.jobs_per_s if complete else 0.0,
                    "predicted / reached": chosen.jobs_per_s / reached.jobs_per_s,
                }
            )
    return rows


def step_rows(found: Sequence[Case], data: Path) -> list[Row]:
    """Mean error of steps at the degrees held back, of the prediction and of the fit that saw them, as shares."""
    points = _points(data / "profiles" / "profiles.csv")
    rows: list[Row] = []
    for case in found:
        predicted, fitted = (options(case, estimator) for estimator in (case.shown, case.whole))
        for degree in (n for n in case.degrees if n > _SHOWN_DEGREE):
            mine = points.get((case.device, case.shape.name, degree), [])
            row: dict[str, Value] = {"device": case.device, "model": case.shape.name, "tp": degree}
            for phase in ("prefill", "decode"):
                of_phase = [point for point in mine if point.phase == phase]
                for name, of in (("predicted", predicted), ("fitted", fitted)):
                    row[f"{phase} {name}"] = _mean_error(of[degree].kind.profile, of_phase)
            rows.append(row)
    return rows


def rough_rows(data: Path, of_mixes: Mapping[str, Sequence[LengthClass]]) -> list[Row]:
    """The error of estimates from public specifications alone, for one engine of each measured device, as a share."""
    rows: list[Row] = []
    for known in read_known([data / "profiles"]):
        shape, spec = known_shape(known.model.partition("(")[0]), find_spec(known.device)
        if shape is None or spec is None or shape.name not in MODELS or known.profile.kv_tokens < LEAST_KV_TOKENS:
            continue
        pcie = not spec.link
        times = roofline(shape, spec, known.tp, shape.dtype, pcie=pcie)
        measured = replace(known.profile, seats=_SEATS)
        kinds = [DeviceKind(p) for p in (times.profile(measured.kv_tokens, _SEATS), measured)]
        row: dict[str, Value] = {"device": known.device, "model": known.model, "tp": known.tp}
        for name, classes in of_mixes.items():
            rates = [throughput([c for c in classes if kinds[0].can_hold(c.longest)], [kind]) for kind in kinds]
            row[name] = rates[0].jobs_per_s / rates[1].jobs_per_s - 1
        rows.append(row)
    return rows


class _Point(NamedTuple):
    phase: str
    batch: int
    tokens: int
    seconds: float


def _points(file: Path) -> dict[tuple[str, str, int], list[_Point]]:
    found: dict[tuple[str, str, int], list[_Point]] = defaultdict(list)
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines):
                key = row["device"], row["model"], int(row["tp"])
                point = _Point(row["phase"], int(row["batch"]), int(row["tokens"]), float(row["seconds"]))
                found[key].append(point)
    except OSError as error:
        raise BenchmarkError(f"cannot read {file}: {error.strerror}") from None
    except (KeyError, ValueError) as error:
        raise BenchmarkError(f"{file}: {error}") from None
    return found


def _mean_error(profile: Profile, points: Sequence[_Point]) -> float | None:
    """None where there is no point."""
    if not points:
        return None
    return fmean(abs(_step(profile, point) / point.seconds - 1) for point in points)


def _step(profile: Profile, point: _Point) -> float:
    if point.phase == "prefill":
        return profile.prefill_seconds(point.tokens)
    return profile.decode_step_seconds(point.batch, point.batch * point.tokens)


def options(case: Case, estimator: Estimator) -> dict[int, EngineOption]:
    """One engine of each degree that was measured."""
    machine = _machine(case, estimator, ())
    return {option.units: option for option in machine.options if option.units in case.degrees}


def _machine(case: Case, estimator: Estimator, classes: Sequence[LengthClass]) -> MachineType:
    spec = find_spec(case.device)
    group = DeviceGroup(case.device, _MACHINE_DEVICES, 80 * _GIB if spec is None else spec.memory_bytes)
    machine = Machine("m", (group,), NVLINK if spec is not None and spec.link else PCIE)
    space = Space(case.shape, (case.shape.dtype,), (_SEATS,), degrees=case.degrees)
    return machine_types([machine], space, estimator, classes)[0]


def _rate(option: EngineOption, classes: Sequence[LengthClass]) -> float:
    return throughput(classes, [option.kind]).jobs_per_s


def _words(engines: Sequence[tuple[EngineOption, int]]) -> str:
    return " + ".join(f"{count} x tp {option.units}" for option, count in engines)
