"""The plan for what is left, with the end in sight: no device takes jobs that outlast the rest of its work. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from broker.fluid import FluidPlan, LengthClass, solve
from broker.policies.outlook import busy_until
from broker.throughput import NO_WORK, DeviceKind

#: Rounds in which the steps that a kind makes, and the longest job it takes, are brought together.
_TRIES = 4


def plan_in_time(classes: Sequence[LengthClass], fleet: Sequence[DeviceKind]) -> tuple[FluidPlan, NDArray[np.bool_]]:
    """The plan that counts in that a device which takes a job of s steps makes at least s steps, full or not.

    Steps beyond those that a full batch needs are paid for in vain: a slow device should not take jobs that outlast
    the rest of its work. Which lengths a kind takes is found by descent: from the longest that the plain program gives
    it, shorter and shorter, as long as all would be done sooner. Returns the pairs that are left out, too.
    """
    fleet = list(fleet)
    for _ in fleet:
        plan = solve(classes, fleet)
        held_up = [
            k for k, kind in enumerate(fleet) if busy_until(kind) >= plan.seconds * 0.999 and not plan.jobs[:, k].any()
        ]
        if not held_up or len(held_up) == len(fleet):
            break
        for k in held_up:  # they will be done last, whatever the others do; the others should not wait for them
            fleet[k] = replace(fleet[k], backlog=NO_WORK, backlog_steps=0.0, context_tokens=0)
    steps = np.array([c.work.steps for c in classes])
    longest = np.full(len(fleet), steps.max(initial=0.0))
    best, late = _with_longest(classes, fleet, steps, longest)
    improved = True
    while improved:
        improved = False
        for k in range(len(fleet)):
            used = steps[best.jobs[:, k] > 1e-6]
            if not len(used):
                continue
            for keep in (0.999, 0.7, 0.4):
                trial = longest.copy()
                trial[k] = used.max() * keep
                plan, left_out = _with_longest(classes, fleet, steps, trial)
                if not plan.unplaced and plan.seconds < best.seconds * (1 - 1e-4):
                    best, late, longest, improved = plan, left_out, trial, True
                    break
    return best, late


def _with_longest(
    classes: Sequence[LengthClass],
    fleet: Sequence[DeviceKind],
    steps: NDArray[np.float64],
    longest: NDArray[np.float64],
) -> tuple[FluidPlan, NDArray[np.bool_]]:
    """The plan in which each kind takes jobs of up to so many steps, and makes as many as its longest has."""
    late = steps[:, None] > longest[None, :]
    plan = solve(classes, fleet, ~late)
    for _ in range(_TRIES):
        used = plan.jobs > 1e-6
        needed = np.array(
            [steps[used[:, k]].max(initial=kind.backlog_steps) * kind.count for k, kind in enumerate(fleet)]
        )
        if (plan.steps >= needed * 0.999).all():
            break
        plan = solve(classes, fleet, ~late, np.maximum(needed, 0.0))
    return plan, late
