"""How near a simulated run came to the most that its devices can do. Pure.

The bound is the linear program of ``broker.fluid`` over fine length classes. Its dual values price a job's work in
seconds of the cluster; by weak duality no scheduler does any set of jobs in less time than the sum of their prices, in
whatever order. So the priced work that ends in a stretch of time, over its length, is a share of the bound: it is at
most 1, up to what was begun before the stretch, less what was begun in it and ends after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from broker.fluid import FluidPlan, Prices, solve
from broker.length_class import LengthClass
from broker.throughput import DeviceKind, Work
from planner.simulate import Outcome, Requests, SimulatedDevice
from planner.simulated import Floats

#: Lengths within this factor are one class of the program; the mean work of a class is exact.
_CLASS_WIDTH = 1.25
#: The stretch that counts as steady begins at this share of it: devices have filled up by then.
_STEADY_FROM = 0.35
#: It is as long as this many jobs take on their devices (at the median), at least: else its edges decide.
_LEAST_LATENCIES = 3.0


@dataclass(frozen=True, slots=True)
class Reached:
    """How much of the possible was reached.

    Attributes:
        bound_jobs_per_s: jobs a second of this mix that no scheduler passes.
        lower_bound_s: least time for all: the larger of the bound's and the longest job alone on its best device.
        load: jobs that came a second over the bound; None where all were there at the start.
        makespan_over_lower_bound: None where the jobs were not all there at the start.
        steady_share: share of the bound while more waited than the scheduler sees; None where ``note`` says why not.
        note: why there is no steady share; empty where there is one.
    """

    bound_jobs_per_s: float
    lower_bound_s: float
    load: float | None
    makespan_over_lower_bound: float | None
    steady_share: float | None
    note: str


class Bound:
    """The bound of some requests on some devices, each part reckoned when it is asked for."""

    def __init__(self, requests: Requests, devices: Sequence[SimulatedDevice]) -> None:
        kinds = Counter(device.kind for device in devices)
        self._kinds = [replace(kind, count=count) for kind, count in kinds.items()]
        self._requests = requests
        self._work = works_of(requests)
        # The last token generated is never held: a bound must not rule out what could have been.
        self._held = requests.prompt_tokens + np.maximum(requests.output_tokens - 1, 0)

    @cached_property
    def plan(self) -> FluidPlan:
        """The best way to share all requests out."""
        return solve(self._classes(), self._kinds)

    @cached_property
    def prices(self) -> Floats:
        """Seconds of the cluster that each request is worth: on the kind where it is cheapest; shape (requests,)."""
        least = np.full(len(self._held), np.inf)
        for kind, price in zip(self._kinds, self.plan.prices, strict=True):
            cost = self._work @ _rates(kind, price)
            np.minimum(least, np.where(self._fits(kind), cost, np.inf), out=least)
        return np.where(np.isfinite(least), least, 0.0)

    @cached_property
    def longest_alone_s(self) -> float:
        """Seconds of the longest request, alone on the device where it is shortest (``Profile.alone_seconds``)."""
        least = np.full(len(self._held), np.inf)
        for kind in self._kinds:
            p = kind.profile
            rates = np.array([p.prefill_b, p.prefill_c, p.decode_e + p.decode_d, p.decode_f, 0.0])
            alone = kind.slowdown * (p.prefill_a + self._work @ rates)
            np.minimum(least, np.where(self._fits(kind), alone, np.inf), out=least)
        return float(np.max(least, where=np.isfinite(least), initial=0.0))

    def reached(self, outcome: Outcome) -> Reached:
        """What a run reached."""
        arrivals, jobs = self._requests.arrivals, len(self._requests)
        bound = jobs / self.plan.seconds if self.plan.seconds > 0 else float("inf")
        lower = max(self.plan.seconds, self.longest_alone_s)
        if arrivals[-1] > 0:
            span = float(arrivals[-1] - arrivals[0])
            note = "jobs came over time: it is the load that says how much the cluster had to do"
            return Reached(bound, lower, jobs / span / bound, None, None, note)
        share, note = self._steady(outcome)
        over = outcome.makespan / lower if lower > 0 else None
        return Reached(bound, lower, None, over, share, note)

    def _steady(self, outcome: Outcome) -> tuple[float | None, str]:
        end = outcome.last_seen_at
        if not end > 0:
            return None, "all jobs fit the scheduler's window at once: there was no steady state; simulate more jobs"
        begin = _STEADY_FROM * end
        latency = float(np.nanmedian(outcome.finished - outcome.dispatched))
        if end - begin < _LEAST_LATENCIES * latency:
            return None, "too few jobs for a steady state: they take as long as most of it lasts; simulate more jobs"
        inside = (outcome.finished > begin) & (outcome.finished <= end)
        return float(self.prices[inside].sum()) / (end - begin), ""

    def _fits(self, kind: DeviceKind) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return self._held <= min(kind.profile.kv_tokens, kind.context_tokens)

    def _classes(self) -> list[LengthClass]:
        """The shortest of a class decides where it may go, see above."""
        per_log = 1 / np.log(_CLASS_WIDTH)
        lengths = (self._requests.prompt_tokens, self._requests.output_tokens)
        prompt, output = ((np.log(np.maximum(n, 1)) * per_log).astype(np.int64) for n in lengths)
        _, label = np.unique(prompt * (output.max(initial=0) + 1) + output, return_inverse=True)
        jobs = np.bincount(label)
        sums = [np.bincount(label, weights=column) for column in self._work.T]
        shortest = np.full(len(jobs), np.iinfo(np.int64).max)
        np.minimum.at(shortest, label, self._held)
        means = (np.array(sums).T / jobs[:, None]).tolist()
        parts = zip(jobs, means, shortest, strict=True)
        return [LengthClass(float(n), Work(*mean), int(least)) for n, mean, least in parts]


def works_of(requests: Requests) -> Floats:
    """``broker.throughput.work_of`` of each request: shape (requests, 5), columns as ``Work`` names them."""
    prompt, output = requests.prompt_tokens.astype(float), requests.output_tokens.astype(float)
    steps = np.maximum(output - 1.0, 0.0)
    context = steps * (prompt + (steps - 1.0) / 2.0)
    return np.column_stack([prompt, prompt * prompt, steps, context, prompt + steps])


def _rates(kind: DeviceKind, price: Prices) -> Floats:
    """``broker.fluid.cost_at`` as a weight for each column of the work."""
    p = kind.profile
    own = np.array([p.prefill_b, p.prefill_c, p.decode_e, p.decode_f, 0.0])
    return price.own_second * kind.slowdown * own + [0.0, 0.0, price.step, price.context_step, price.token]
