"""Four devices, and the ways to run engines on them: each device alone, in pairs, or all as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from broker.fluid import solve
from broker.length_class import LengthClass
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.profiles import ProfileRecord, ProfileValues
from broker.recent_mix import RecentMix
from broker.throughput import DeviceKind, Profile

HOST = "bench"
CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Engines that are alike, on all devices together.

    Attributes:
        name: what the pool looks like, such as ``4x1``.
        workers: how many engines.
        devices: devices of each.
        profile: times and sizes of each.
    """

    name: str
    workers: int
    devices: int
    profile: Profile

    @property
    def kind(self) -> DeviceKind:
        """All its engines."""
        return DeviceKind(self.profile, count=self.workers, context_tokens=CONTEXT_TOKENS)

    def jobs_per_s(self, classes: Sequence[LengthClass]) -> float:
        """Jobs of a mix that it does a second at best."""
        return solve(classes, [self.kind]).jobs_per_s


#: Weights fill most of a device: two devices that share them have more than three times the KV memory of one. They are
#: faster than one, but not twice as fast.
SHAPES = (
    Shape("4x1", 4, 1, Profile(0.01, 2.0e-4, 0.0, 0.060, 4.0e-4, 2.0e-6, kv_tokens=8_000, seats=32)),
    Shape("2x2", 2, 2, Profile(0.01, 1.2e-4, 0.0, 0.040, 2.5e-4, 1.2e-6, kv_tokens=30_000, seats=32)),
    Shape("1x4", 1, 4, Profile(0.01, 0.8e-4, 0.0, 0.030, 1.6e-4, 0.8e-6, kv_tokens=75_000, seats=32)),
)


class Menu:
    """The planner's search, over these shapes: the scheduler's own linear program values each."""

    def __init__(self, folder: Path) -> None:
        self._files = {shape.name: folder / f"{shape.name}.json" for shape in SHAPES}
        for shape in SHAPES:
            text = orjson.dumps(ProfileValues.of(shape.profile).model_dump(), option=orjson.OPT_INDENT_2)
            self._files[shape.name].write_bytes(text)

    def propose(self, mix: RecentMix, profiles: Sequence[ProfileRecord]) -> PoolPlan:
        """The best shape for a mix."""
        del profiles
        return self.plan(max(SHAPES, key=lambda shape: shape.jobs_per_s(mix.length_classes())), mix)

    def expected(
        self, workers: Sequence[PlannedWorker], mix: RecentMix, profiles: Sequence[ProfileRecord]
    ) -> float | None:
        """What a shape does on a mix."""
        del profiles
        names = {worker.name.rpartition("-")[0] for worker in workers}
        [shape] = [shape for shape in SHAPES if shape.name in names] or [None]
        return None if shape is None else _tokens_per_s(shape, mix)

    def plan(self, shape: Shape, mix: RecentMix) -> PoolPlan:
        """The plan of this shape."""
        rate = _tokens_per_s(shape, mix)
        workers = tuple(
            PlannedWorker(
                name=f"{shape.name}-{number}",
                host=HOST,
                options=(
                    *("--engine", "simulated", "--profile", str(self._files[shape.name])),
                    *("--context", str(CONTEXT_TOKENS)),
                ),
                devices=tuple(range(number * shape.devices, (number + 1) * shape.devices)),
                tokens_per_s=rate / shape.workers,
            )
            for number in range(shape.workers)
        )
        return PoolPlan(1, 0.0, workers, rate, reason=f"{shape.name} is the best for the mix", min_workers=1)


def best_shape(classes: Sequence[LengthClass]) -> Shape:
    """The shape that does most of a mix."""
    return max(SHAPES, key=lambda shape: shape.jobs_per_s(classes))


def _tokens_per_s(shape: Shape, mix: RecentMix) -> float:
    return shape.jobs_per_s(mix.length_classes()) * mix.tokens_a_job
