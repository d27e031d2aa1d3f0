"""What a scheduling decision costs, by number of devices: the live placer in a saturated cluster of simulated devices.

Time is CPU time inside ``Placer``, a job that it places, while every device is full and a backlog waits; the linear
program is timed by itself, with devices grouped by kind, with kinds that drifted apart, and with no two alike.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.clockwork import Clockwork
from benchmarks.cluster import BenchmarkError
from benchmarks.placing.bound import length_classes
from benchmarks.placing.devices import Cluster
from benchmarks.placing.lengths import Lengths
from benchmarks.placing.steady import jobs_held
from benchmarks.report import Report, Row, Value, note, options_parser, run_benchmark
from benchmarks.routing.workload import drawn_lengths
from broker.fluid import solve
from broker.placement import Placer
from broker.policies import make_policy
from broker.policies.shares import Shares
from broker.throughput import DeviceKind, Profile
from planner.simulate import KnownLengths, Requests, SimulatedDevice
from tokenyard.garbage import collect_rarely

#: Six unequal devices: an accelerator with an 8B model (about an A100), and others by speed and KV memory.
_FASTEST = Profile(0.01, 5.0e-5, 2.0e-9, 0.0115, 4.0e-5, 8.0e-8, kv_tokens=430_000, seats=256)
_SPEEDS = ((1.0, 1.0), (0.7, 1.0), (0.5, 0.4), (0.4, 0.1), (0.2, 0.2), (0.1, 0.07))
_BATCHED_TOKENS = 8192
#: Jobs that are placed before the clock runs, as a share of what the devices hold; and those that are timed.
_WARM_UP = 1.5
_TIMED_A_DEVICE, _TIMED_LEAST = 40, 8000
_WINDOW_JOBS = 4096
_ROUND_TRIP_S = 0.02
_LONGEST_PROMPT = 8000
#: Length classes as the policy files them, and how far apart slowdowns are.
_CLASS_WIDTH = 1.5
_BUCKET, _MOST_SLOWDOWN = 1.1, 3.0
#: With more devices than this the program with each a kind of its own is not tried: it takes a minute for 1,000.
_MOST_APART = 300
#: What is timed. Plans (the linear program and what is made of it) are a part of decisions.
_METHODS: Mapping[str, tuple[type, str]] = {
    "decide": (Placer, "decide"),
    "plans": (Shares, "_solve"),
    "completed": (Placer, "completed"),
    "add": (Placer, "add"),
}


@dataclass(slots=True)
class Meter:
    """CPU time (seconds) inside the placer, by method, while jobs ``first`` to ``last`` are placed."""

    first: int
    last: int
    placed: int = 0
    timed: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_METHODS, 0.0))
    longest: float = 0.0

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the placer, with its time counted."""

        def timed(*args: Any) -> Any:
            begun = time.thread_time()
            result = method(*args)
            self._count(name, time.thread_time() - begun, result)
            return result

        return timed

    def microseconds(self, name: str) -> float:
        """Time in that method for each job that was placed."""
        return self.seconds[name] / max(self.timed, 1) * 1e6

    def _count(self, name: str, seconds: float, result: Any) -> None:
        counts = self.first <= self.placed < self.last
        jobs = sum(map(len, result.values())) if name == "decide" else 0
        self.placed += jobs
        if counts:
            self.timed += jobs
            self.seconds[name] += seconds
            self.longest = max(self.longest, seconds if name == "decide" else 0.0)


async def main(options: argparse.Namespace) -> Report:
    """Measure each number of devices."""
    collect_rarely()  # as the scheduler's process does
    rows: list[Row] = []
    for devices in options.devices:
        rows.append(_measure(devices, options.policy, options.seed))
        note(f"{devices:,} devices: {rows[-1]['decide_us']:.1f} us a job")
    title = f"CPU time of placement, policy {options.policy}: microseconds a job, milliseconds a linear program"
    return Report(title, rows, _summary(rows), notes=_notes())


def _measure(devices: int, policy: str, seed: int) -> Row:
    kinds = kinds_of(devices)
    cluster = Cluster("", tuple((f"kind-{k}", kind) for k, kind in enumerate(kinds)))
    look = _lengths(_WINDOW_JOBS, seed)
    held = jobs_held(look, cluster)
    first = int(_WARM_UP * held)
    last = first + max(_TIMED_LEAST, _TIMED_A_DEVICE * devices)
    meter = Meter(first, last)
    _run(meter, cluster.devices(), _lengths(last + 2 * _WINDOW_JOBS, seed), policy, seed)
    if not meter.timed:
        raise BenchmarkError("no job was placed while the clock ran")
    drifted = [slowed for kind in kinds for slowed in _slowed(kind, buckets=True)]
    apart = [slowed for kind in kinds for slowed in _slowed(kind, buckets=False)]
    return {
        "devices": devices,
        "jobs": meter.timed,
        **{f"{name}_us": meter.microseconds(name) for name in _METHODS},
        "longest_ms": meter.longest * 1e3,
        "kinds": len(kinds),
        "lp_ms": _program_ms(look, kinds),
        "drifted": len(drifted),
        "lp_drifted_ms": _program_ms(look, drifted),
        "lp_all_apart_ms": _program_ms(look, apart) if devices <= _MOST_APART else None,
    }


def _run(meter: Meter, devices: Sequence[SimulatedDevice], lengths: Lengths, policy: str, seed: int) -> None:
    """Go on until all that is to be timed is placed."""
    rng = random.Random(seed)
    known = KnownLengths(Requests(np.zeros(len(lengths)), lengths[:, 0], lengths[:, 1]))
    placer = Placer(make_policy(policy), rng, _ROUND_TRIP_S, lengths=known, whole=False)
    cluster = Clockwork(placer, lengths, _WINDOW_JOBS)
    cluster.add_devices(devices)
    with _timed_placer(meter):
        while meter.placed < meter.last:
            cluster.round()


@contextmanager
def _timed_placer(meter: Meter) -> Generator[None]:
    with ExitStack() as stack:
        for name, (owner, method) in _METHODS.items():
            stack.enter_context(patch.object(owner, method, meter.wrap(name, getattr(owner, method))))
        yield


def kinds_of(devices: int) -> list[DeviceKind]:
    """So many devices, of six kinds in equal parts."""
    shares = [devices // len(_SPEEDS) + (k < devices % len(_SPEEDS)) for k in range(len(_SPEEDS))]
    kinds = [_kind(*speed, count) for speed, count in zip(_SPEEDS, shares, strict=True)]
    return [kind for kind in kinds if kind.count]


def _kind(speed: float, memory: float, count: int) -> DeviceKind:
    p = _FASTEST
    times = [value / speed for value in (p.prefill_a, p.prefill_b, p.prefill_c, p.decode_d, p.decode_e, p.decode_f)]
    profile = Profile(*times, kv_tokens=int(p.kv_tokens * memory), seats=p.seats)
    return DeviceKind(profile, count, max_batched_tokens=_BATCHED_TOKENS)


def _slowed(kind: DeviceKind, *, buckets: bool) -> Iterator[DeviceKind]:
    """The devices of a kind with slowdowns spread evenly up to the most; in buckets, those of one together."""
    counts: dict[float, int] = {}
    for i in range(kind.count):
        slowdown = _MOST_SLOWDOWN ** ((i + 0.5) / kind.count)
        if buckets:
            slowdown = _BUCKET ** round(np.log(slowdown) / np.log(_BUCKET))
        counts[slowdown] = counts.get(slowdown, 0) + 1
    for slowdown, count in counts.items():
        yield replace(kind, count=count, slowdown=slowdown)


def _program_ms(lengths: Lengths, kinds: Sequence[DeviceKind]) -> float:
    """The median of some solutions."""
    classes = length_classes(lengths, _CLASS_WIDTH)
    times: list[float] = []
    for _ in range(5 if len(kinds) < 200 else 1):
        begun = time.thread_time()
        solve(classes, kinds)
        times.append(time.thread_time() - begun)
    return float(np.median(times)) * 1e3


def _lengths(count: int, seed: int) -> Lengths:
    return np.array(drawn_lengths(count, _LONGEST_PROMPT, random.Random(seed)), dtype=np.int64)


def _summary(rows: Sequence[Row]) -> dict[str, Value]:
    """Figures at the largest number of devices; growth since the smallest."""
    first, last = rows[0], rows[-1]
    name = last["devices"]
    return {
        f"us_per_job_at_{name}": last["decide_us"],
        f"lp_ms_at_{name}": last["lp_ms"],
        f"lp_drifted_ms_at_{name}": last["lp_drifted_ms"],
        "us_growth": _ratio(last["decide_us"], first["decide_us"]),
        "lp_growth": _ratio(last["lp_ms"], first["lp_ms"]),
    }


def _ratio(value: Value, base: Value) -> float:
    assert isinstance(value, float) and isinstance(base, float)
    return value / base


def _notes() -> list[str]:
    return [
        f"six kinds of devices in equal parts, {_FASTEST.seats} seats each; {_WINDOW_JOBS:,} jobs in the window; "
        "lengths from heavy-tailed distributions, known to the placer",
        "decide: refresh of offers, policy with linear programs (plans), and booking; longest: its longest call",
        f"drifted: kinds with slowdowns from 1 to {_MOST_SLOWDOWN:g} in steps of {_BUCKET:g}; all apart: each device a "
        "kind of its own",
    ]


def _counts(text: str) -> list[int]:
    try:
        return sorted(max(1, int(count)) for count in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers with commas between them") from None


def _options() -> argparse.Namespace:
    parser = options_parser("decision_cost", __doc__ or "")
    parser.add_argument("--devices", type=_counts, default=[10, 30, 100, 300, 1000], help="numbers, comma-separated")
    parser.add_argument("--policy", default="throughput")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
