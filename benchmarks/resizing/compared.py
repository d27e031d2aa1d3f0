"""What the live pool is measured against: pools that never change, simulated; and an oracle, as a fluid."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from benchmarks.resizing.day import LONG, SHORT, Day
from benchmarks.resizing.shapes import SHAPES, Shape
from broker.length_class import LengthClass
from broker.policies import make_policy
from planner.simulate import Requests, SimulatedDevice, Simulation

#: The oracle moves in steps of this long (seconds); the mix of what waits is taken to this share.
_STEP_S = 0.5
_SHARES = 50


def fixed_pool(shape: Shape, requests: Requests, seed: int) -> float:
    """When a pool that keeps this shape has done all, in seconds from the start: simulated, with lengths learned."""
    kind = shape.kind
    one = type(kind)(kind.profile, context_tokens=kind.context_tokens)
    devices = [SimulatedDevice(f"{shape.name}-{number}", one) for number in range(shape.workers)]
    run = Simulation(requests, devices, make_policy("throughput"), random.Random(seed))
    return float(np.nanmax(run.run().finished))


def oracle(requests: Requests, long: Sequence[bool]) -> float:
    """When one has done all that always has the best shape for what waits, and changes in no time.

    A fluid: nobody waits for a step, a prompt or a seat.
    """
    arrivals = requests.arrivals
    waiting = np.zeros(2)
    now, seen = 0.0, 0
    while seen < len(arrivals) or waiting.sum() > 1e-6:
        now += _STEP_S
        while seen < len(arrivals) and arrivals[seen] <= now:
            waiting[int(long[seen])] += 1
            seen += 1
        there = waiting.sum()
        if there > 0:
            done = min(_rate(round(_SHARES * waiting[1] / there)) * _STEP_S, there)
            if seen == len(arrivals) and done == there:
                return float(now - _STEP_S + there / _rate(round(_SHARES * waiting[1] / there)))
            waiting *= 1 - done / there
    return now


def day_is_sound(day: Day) -> bool:
    """Whether another shape is the best at its end than at its start: else there is nothing to change."""
    return day.best(0.0) != day.best(day.seconds)


_rates: dict[int, float] = {}


def _rate(long_shares: int) -> float:
    """Jobs a second of the best shape, where that many fiftieths of what waits are long."""
    if long_shares not in _rates:
        share = long_shares / _SHARES
        classes = [LengthClass.of(*SHORT, 1 - share + 1e-9), LengthClass.of(*LONG, share + 1e-9)]
        _rates[long_shares] = max(shape.jobs_per_s(classes) for shape in SHAPES)
    rate = _rates[long_shares]
    assert math.isfinite(rate)
    return rate
