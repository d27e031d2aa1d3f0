"""The plan for what is left, with the end in sight: no device takes jobs that outlast the rest of its work. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from broker.fluid import FluidPlan, solve
from broker.length_class import LengthClass
from broker.policies.outlook import busy_until
from broker.throughput import NO_WORK, DeviceKind

#: Rounds in which the steps that a kind makes, and the longest job it takes, are brought together.
_TRIES = 8
#: Where the longest job that a kind takes is looked for, as shares of what it takes now.
_SHORTER_OR_LONGER = (0.999, 0.7, 0.4, 1.4)
#: A plan is better when it takes less than this share of the other's time.
_BETTER = 1 - 1e-4


def plan_in_time(classes: Sequence[LengthClass], fleet: Sequence[DeviceKind]) -> tuple[FluidPlan, NDArray[np.bool_]]:
    """The plan that counts in that a device which takes a job of s steps makes at least s steps, full or not.

    Steps beyond those that a full batch needs are paid for in vain: a slow device should not take jobs that outlast
    the rest of its work. Which lengths a kind takes is found by descent, as long as all would be done sooner: from
    all lengths everywhere, or from one kind taking the longest and the others what they have the steps for anyway.
    Returns the pairs that are left out, too.
    """
    fleet, plan = _without_held_up(classes, fleet)
    search = _Search(classes, fleet, np.array([c.work.steps for c in classes]))
    best = min((search.limited(limits) for limits in _starts(search, plan)), key=lambda found: found.rank)
    improved = True
    while improved:
        improved = False
        for k in range(len(fleet)):
            used = search.steps[best.plan.jobs[:, k] > 1e-6]
            if not len(used):
                continue
            for factor in _SHORTER_OR_LONGER:
                limits = best.limits.copy()
                limits[k] = used.max() * factor
                found = search.limited(limits)
                if found.rank[0] <= best.rank[0] and found.plan.seconds < best.plan.seconds * _BETTER:
                    best, improved = found, True
                    break
    return best.plan, best.late


def _without_held_up(classes: Sequence[LengthClass], fleet: Sequence[DeviceKind]) -> tuple[list[DeviceKind], FluidPlan]:
    """The fleet, and its plain plan, in which kinds that will be done last, whatever the others do, hold up nobody."""
    fleet = list(fleet)
    plan = solve(classes, fleet, in_one_piece=True)
    for _ in fleet:
        held_up = [
            k for k, kind in enumerate(fleet) if busy_until(kind) >= plan.seconds * 0.999 and not plan.jobs[:, k].any()
        ]
        if not held_up or len(held_up) == len(fleet):
            break
        for k in held_up:
            fleet[k] = replace(fleet[k], backlog=NO_WORK, backlog_steps=0.0, context_tokens=0)
        plan = solve(classes, fleet, in_one_piece=True)
    return fleet, plan


def _starts(search: _Search, plain: FluidPlan) -> Iterator[NDArray[np.float64]]:
    everything = np.full(len(search.fleet), search.steps.max(initial=0.0))
    yield everything
    counts = np.array([kind.count for kind in search.fleet])
    anyway = np.maximum(plain.steps / counts, [kind.backlog_steps for kind in search.fleet])
    for k in range(len(search.fleet)):
        limits = np.minimum(anyway, everything)
        limits[k] = everything[k]
        yield limits


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan in which each kind takes jobs of up to so many steps; which pairs that leaves out."""

    limits: NDArray[np.float64]
    plan: FluidPlan
    late: NDArray[np.bool_]

    @property
    def rank(self) -> tuple[int, float]:
        """The lower, the better: first all jobs that can be placed are."""
        return len(self.plan.unplaced), self.plan.seconds


@dataclass(slots=True)
class _Search:
    """The classes and kinds between which it looks."""

    classes: Sequence[LengthClass]
    fleet: Sequence[DeviceKind]
    steps: NDArray[np.float64]
    _known: dict[bytes, _Found] = field(default_factory=dict[bytes, "_Found"])

    def limited(self, limits: NDArray[np.float64]) -> _Found:
        """The plan with these limits, in which each kind makes as many steps as its longest job has."""
        late = self.steps[:, None] > limits[None, :]
        key = late.tobytes()
        if key not in self._known:
            self._known[key] = _Found(limits, self._solve(late), late)
        return self._known[key]

    def _solve(self, late: NDArray[np.bool_]) -> FluidPlan:
        plan = solve(self.classes, self.fleet, ~late, in_one_piece=True)
        needed = np.zeros(len(self.fleet))
        for _ in range(_TRIES):
            used = plan.jobs > 1e-6
            longest = np.array(
                [
                    self.steps[used[:, k]].max(initial=kind.backlog_steps) * kind.count
                    for k, kind in enumerate(self.fleet)
                ]
            )
            if (plan.steps >= longest * 0.999).all():
                break
            needed = np.maximum(needed, longest)  # never less: else two kinds may pass a job to and fro for ever
            plan = solve(self.classes, self.fleet, ~late, needed, in_one_piece=True)
        return plan
