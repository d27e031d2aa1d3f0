"""What a cluster could do at best with a mix of requests: the linear program's bound, as prices of requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import highspy
import numpy as np
from numpy.typing import NDArray

from benchmarks.placing.lengths import Lengths
from broker.fluid import FluidPlan, solve
from broker.length_class import LengthClass
from broker.throughput import DeviceKind, Work, work_of

Floats = NDArray[np.float64]

#: Lengths within this factor are one class of the program.
_CLASS_WIDTH = 1.25


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound for a set of requests.

    Attributes:
        worth: by request, the least share of the cluster's time (seconds) that it costs at the program's prices. By
            weak duality no scheduler does any of these requests in less time than the sum of their worth.
        prefill_worth: the part of it that is for the prompts.
        plan: the program's solution.
    """

    worth: Floats
    prefill_worth: Floats
    plan: FluidPlan

    @property
    def seconds(self) -> float:
        """Least time for all of them."""
        return float(self.worth.sum())

    @property
    def requests_per_s(self) -> float:
        """The rate that goes with it."""
        return len(self.worth) / self.seconds


def bound_of(lengths: Lengths, fleet: Sequence[DeviceKind]) -> Bound:
    """The bound for requests of these lengths, all of which some device can hold."""
    plan = solve(length_classes(lengths, _CLASS_WIDTH), fleet)
    return Bound(*_worth(lengths, plan, fleet), plan)


def length_classes(lengths: Lengths, width: float) -> list[LengthClass]:
    """Requests filed by lengths within a factor of ``width``."""
    classes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for prompt, output in lengths.tolist():
        classes[int(log(prompt, width)), int(log(output, width))].append((prompt, output))
    return [
        LengthClass(
            len(of_class),
            Work(*np.mean([work_of(*pair) for pair in of_class], axis=0).tolist()),
            max(map(sum, of_class)),
        )
        for of_class in classes.values()
    ]


def separate_bound(lengths: Lengths, fleet: Sequence[DeviceKind]) -> float:
    """Requests a second by the simpler program, in which each request pays for the scarcer of seats and memory itself.

    That is ``Profile.device_seconds``. It is no bound: jobs that fill the seats and jobs that fill the memory can share
    the steps that each pays for here.
    """
    classes = length_classes(lengths, _CLASS_WIDTH)
    highs = highspy.Highs()
    highs.silent()
    most = highs.addVariable(obj=1.0)
    load: list[list[highspy.highs.highs_linear_expression]] = [[] for _ in fleet]
    for of_class in classes:
        takers: list[highspy.highs.highs_var] = []
        for k, kind in enumerate(fleet):
            if kind.can_hold(of_class.longest):
                profile, work = kind.profile, of_class.work
                seconds = profile.own_seconds(work) + profile.decode_d * profile.steps_needed(work)
                jobs = highs.addVariable()
                takers.append(jobs)
                load[k].append(jobs * (seconds * kind.slowdown / kind.count))
        highs.addConstr(highs.qsum(takers) == of_class.jobs)
    for of_kind in load:
        if of_kind:
            highs.addConstr(highs.qsum(of_kind) <= most)
    highs.minimize()
    return len(lengths) / highs.getObjectiveValue()


def _worth(lengths: Lengths, plan: FluidPlan, fleet: Sequence[DeviceKind]) -> tuple[Floats, Floats]:
    """``FluidPlan.seconds_of`` of many requests at once, and the part of it that is for the prompts."""
    prompts, outputs = lengths[:, 0].astype(float), lengths[:, 1].astype(float)
    steps = outputs - 1
    held = steps * (prompts + (steps - 1) / 2) * (steps > 0)
    tokens = lengths.sum(axis=1)
    least, of_prompts = np.full(len(lengths), np.inf), np.zeros(len(lengths))
    for kind, price in zip(fleet, plan.prices, strict=True):
        profile, own = kind.profile, price.own_second * kind.slowdown
        prefill = own * (profile.prefill_b * prompts + profile.prefill_c * prompts**2) + price.token * prompts
        decode = own * (profile.decode_e * steps + profile.decode_f * held)
        decode += price.context_step * held + (price.step + price.token) * steps
        fits = tokens <= min(profile.kv_tokens, kind.context_tokens)
        better = fits & (prefill + decode < least)
        least = np.where(better, prefill + decode, least)
        of_prompts = np.where(better, prefill, of_prompts)
    return least, of_prompts
