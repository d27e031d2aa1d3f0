"""Ways to share this machine's cores out among real engines: what is predicted of each, beside what it then does. Pure.

Two of them are measured by ``tokenyard profile``, on all cores each, so that engines that run side by side slow each
other down in their profile as they do at work. Of the others, the number of cores or the precision differs, or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import fmean

from benchmarks.report import Row, Value
from broker.length_class import LengthClass
from broker.profiles import ProfileRecord
from broker.throughput import DeviceKind
from planner.cluster_plan import throughput
from planner.estimate import Estimator, Measured
from planner.model_shape import ModelShape
from planner.reach import as_reached, requests_at_once
from planner.scaling import Times
from tokenyard.demo_model import DEMO_MODEL_NAMES
from tokenyard.local_cluster import WorkerSpec

SEATS, CONTEXT = 32, 512
#: Tokens of a block of KV cache: a request holds whole ones.
BLOCK_TOKENS = 32
#: KV memory of all engines together (GiB), ample and scarce.
KV_GIB = (0.5, 0.1)
DTYPES = ("bfloat16", "float32")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Candidate:
    """Engines that are alike, on all cores together.

    Attributes:
        engines: how many.
        cores: of each.
        dtype: precision.
        kv_gib: KV memory of all together.
    """

    engines: int
    cores: int
    dtype: str
    kv_gib: float

    @property
    def layout(self) -> str:
        """Engines and cores, in words."""
        return f"{self.engines} x {self.cores} core" + ("s" if self.cores > 1 else "")

    @property
    def label(self) -> str:
        """What its engines' names begin with."""
        return f"{self.engines}x{self.cores}-{self.dtype}-{self.kv_gib:g}"

    def specs(self, usable: Sequence[int]) -> list[WorkerSpec]:
        """Its workers, each on cores of its own."""
        found: list[WorkerSpec] = []
        for number in range(self.engines):
            own = ",".join(str(core) for core in usable[number * self.cores : (number + 1) * self.cores])
            words = f"--dtype {self.dtype} --seats {SEATS} --kv-gib {self.kv_gib / self.engines:g} --cores {own}"
            words += f" --context {CONTEXT} --eager --engine-arg block-size={BLOCK_TOKENS}"
            found.append(WorkerSpec(f"{self.label}-{number + 1}", tuple(words.split())))
        return found


def candidates() -> list[Candidate]:
    """All eight, for two cores."""
    layouts = ((1, 2), (2, 1))
    return [Candidate(*layout, dtype, kv) for layout in layouts for dtype in DTYPES for kv in KV_GIB]


def shown() -> tuple[Candidate, Candidate]:
    """The two that are profiled: each number of cores once, each precision once."""
    return Candidate(1, 2, "bfloat16", KV_GIB[0]), Candidate(2, 1, "float32", KV_GIB[0])


def groups() -> list[list[Candidate]]:
    """All of them, as many together as memory has room for: six engines take 15 GB.

    In each group are the two that are profiled, to tell how fast the machine is.
    """
    one_and_two = [Candidate(1, 2, "float32", KV_GIB[0]), Candidate(2, 1, "bfloat16", KV_GIB[0])]
    scarce = [[c for c in candidates() if (c.kv_gib, c.dtype) == (KV_GIB[1], dtype)] for dtype in DTYPES]
    return [[*shown(), *others] for others in (one_and_two, *scarce)]


def measured_engine(records: Sequence[ProfileRecord]) -> Measured:
    """One engine of those that were profiled side by side: the mean of their times."""
    engines = [Measured.of_record(record) for record in records]
    times = Times(*(fmean(column) for column in zip(*(astuple(m.profile)[:6] for m in engines), strict=True)))
    first = engines[0]
    return replace(first, profile=times.profile(first.profile.kv_tokens, first.profile.seats))


def kv_tokens(candidate: Candidate, shape: ModelShape) -> int:
    """Tokens of context in the KV memory of one engine: whole blocks, of which vLLM keeps one for itself."""
    blocks = int(candidate.kv_gib / candidate.engines * _GIB / (shape.kv_bytes(candidate.dtype) * BLOCK_TOKENS)) - 1
    return blocks * BLOCK_TOKENS


def predicted(candidate: Candidate, estimator: Estimator, shape: ModelShape, classes: Sequence[LengthClass]) -> float:
    """Prompt and output tokens a second of all its engines together."""
    estimate = estimator.estimate("cpu", candidate.cores, candidate.dtype)
    profile = estimate.times.profile(kv_tokens(candidate, shape), SEATS)
    kind = DeviceKind(profile, count=candidate.engines, max_batched_tokens=estimate.max_batched_tokens)
    return throughput(classes, as_reached([kind], classes, BLOCK_TOKENS)).tokens_per_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was predicted of a candidate, and what it did.

    Attributes:
        candidate: it.
        by_profiles: tokens a second predicted from the profiles, which were taken minutes before.
        predicted: the same from the profiles put right by what the profiled engines did in turns with this one.
        measured: tokens a second.
    """

    candidate: Candidate
    by_profiles: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.measured - 1

    @property
    def error_by_profiles(self) -> float:
        """The same of the profiles as they were."""
        return self.by_profiles / self.measured - 1

    @property
    def speed(self) -> float:
        """Of the machine when this was measured, with that at the profiles as 1."""
        return self.predicted / self.by_profiles


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts from the profiles of those that are shown.

    Attributes:
        known: profiles, in the order of ``shown``.
        shape: the model's.
        classes: the mix.
    """

    known: Sequence[Measured]
    shape: ModelShape
    classes: Sequence[LengthClass]

    def rate(self, candidate: Candidate) -> float:
        """Prompt and output tokens a second of all its engines together."""
        estimator = Estimator(self.shape, list(self.known), DEMO_MODEL_NAMES)
        return predicted(candidate, estimator, self.shape, self.classes)

    def at_once(self, candidate: Candidate) -> int:
        """Requests that one of its engines runs at a time."""
        return requests_at_once(kv_tokens(candidate, self.shape), SEATS, self.classes)

    def put_right(self, rates: Mapping[Candidate, float]) -> Predictor:
        """Each profile slower or faster as a whole, so that it predicts what its engines were measured to do."""
        slowdowns = [self.rate(candidate) / rates[candidate] for candidate in shown()]
        known = [
            replace(one, profile=one.profile.slower(factor)) for one, factor in zip(self.known, slowdowns, strict=True)
        ]
        return replace(self, known=known)


def outcomes(predictor: Predictor, measured: Sequence[Mapping[Candidate, float]]) -> list[Outcome]:
    """What was predicted beside what was measured.

    Args:
        predictor: with the profiles.
        measured: those that were measured in turns with one another, in tokens a second; in each the profiled ones.
    """
    found: list[Outcome] = []
    for rates in measured:
        now = predictor.put_right(rates)
        found += [Outcome(c, predictor.rate(c), now.rate(c), rate) for c, rate in rates.items()]
    return found


def rows_of(found: Sequence[Outcome]) -> list[Row]:
    """A line for each outcome."""
    return [
        {
            "layout": one.candidate.layout,
            "dtype": one.candidate.dtype,
            "KV GiB": one.candidate.kv_gib,
            "profiled": "yes" if one.candidate in shown() else "",
            "measured": one.measured,
            "predicted": one.predicted,
            "error": one.error,
            "by profiles alone": one.by_profiles,
            "its error": one.error_by_profiles,
        }
        for one in found
    ]


def summary_of(found: Sequence[Outcome], profiling_s: float) -> dict[str, Value]:
    """The worst error of those that were not profiled; and whether the one predicted best is the best.

    Rates are compared at one speed of the machine.
    """
    others = [one for one in found if one.candidate not in shown()]
    best, chosen = max(found, key=_at_one_speed), max(found, key=lambda one: one.by_profiles)
    return {
        "worst_prediction_error": max(abs(one.error) for one in others),
        "worst_prediction_error_by_profiles": max(abs(one.error_by_profiles) for one in others),
        "best_found": int(best.candidate == chosen.candidate),
        "chosen_share_of_best": _at_one_speed(chosen) / _at_one_speed(best),
        "profiling_s": profiling_s,
    }


def _at_one_speed(one: Outcome) -> float:
    return one.measured / one.speed
