"""Ways to share this machine's cores out among real engines: what is predicted of each, beside what it then does. Pure.

Two of them are measured by ``tokenyard profile``, on all cores each, so that engines that run side by side slow each
other down in their profile as they do at work. Of the others, the number of cores or the precision differs, or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import fmean

from benchmarks.report import Row, Value
from broker.fluid import LengthClass
from broker.profiles import ProfileRecord
from broker.throughput import DeviceKind
from planner.cluster_plan import throughput
from planner.estimate import Estimator, Measured
from planner.model_shape import ModelShape
from planner.reach import as_reached
from planner.scaling import Times
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

    def specs(self, usable: Sequence[int]) -> list[WorkerSpec]:
        """Its workers, each on cores of its own."""
        found: list[WorkerSpec] = []
        for number in range(self.engines):
            own = ",".join(str(core) for core in usable[number * self.cores : (number + 1) * self.cores])
            words = f"--dtype {self.dtype} --seats {SEATS} --kv-gib {self.kv_gib / self.engines:g} --cores {own}"
            words += f" --context {CONTEXT} --eager --engine-arg block-size={BLOCK_TOKENS}"
            found.append(WorkerSpec(f"engine-{number + 1}", tuple(words.split())))
        return found


def candidates() -> list[Candidate]:
    """All eight, for two cores."""
    layouts = ((1, 2), (2, 1))
    return [Candidate(*layout, dtype, kv) for layout in layouts for dtype in DTYPES for kv in KV_GIB]


def shown() -> tuple[Candidate, Candidate]:
    """The two that are profiled: each number of cores once, each precision once."""
    return Candidate(1, 2, "bfloat16", KV_GIB[0]), Candidate(2, 1, "float32", KV_GIB[0])


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


def rows_of(predictions: Mapping[Candidate, float], measured: Mapping[Candidate, float]) -> list[Row]:
    """A line for each candidate."""
    profiled = shown()
    return [
        {
            "layout": candidate.layout,
            "dtype": candidate.dtype,
            "KV GiB": candidate.kv_gib,
            "profiled": "yes" if candidate in profiled else "",
            "predicted": predictions[candidate],
            "measured": measured[candidate],
            "error": predictions[candidate] / measured[candidate] - 1,
        }
        for candidate in predictions
    ]


def summary_of(
    predictions: Mapping[Candidate, float], measured: Mapping[Candidate, float], profiling_s: float
) -> dict[str, Value]:
    """The worst error of those that were not profiled; and whether the one predicted best is the best."""
    others = [candidate for candidate in predictions if candidate not in shown()]
    best, chosen = (max(rates, key=lambda c: rates[c]) for rates in (measured, predictions))
    return {
        "worst_prediction_error": max(abs(predictions[c] / measured[c] - 1) for c in others),
        "best_found": int(best == chosen),
        "chosen_share_of_best": measured[chosen] / measured[best],
        "profiling_s": profiling_s,
    }
