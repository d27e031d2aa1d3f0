"""A batch from its first job to its last: the makespan, beside the least that any scheduler needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.placing.bound import bound_of
from benchmarks.placing.devices import Cluster
from benchmarks.placing.lengths import Lengths
from benchmarks.placing.steady import full_step_seconds, mean_context, simulate
from broker.throughput import DeviceKind


@dataclass(frozen=True, slots=True)
class LowerBound:
    """The least makespan, and what makes it hard to reach (seconds).

    Attributes:
        work: all work over the fluid bound.
        longest_alone: the longest job alone on its best device.
        longest_in_batch: the same in a batch as full as the device holds, as it is while the work lasts.
    """

    work: float
    longest_alone: float
    longest_in_batch: float

    @property
    def seconds(self) -> float:
        """No scheduler is faster."""
        return max(self.work, self.longest_alone)

    @property
    def reachable(self) -> bool:
        """Whether a job that starts at once and decodes in full batches ends in time."""
        return self.longest_in_batch <= self.seconds


def lower_bound(lengths: Lengths, cluster: Cluster) -> LowerBound:
    """The lower bound for a batch, all of which waits from the start."""
    fleet = cluster.fleet
    context = mean_context(lengths)
    return LowerBound(
        work=bound_of(lengths, fleet).seconds,
        longest_alone=_longest(lengths, fleet, [kind.profile.decode_d for kind in fleet], own_context=True),
        longest_in_batch=_longest(lengths, fleet, [full_step_seconds(kind, context) for kind in fleet]),
    )


def makespan(lengths: Lengths, cluster: Cluster, policy: str, seed: int) -> float:
    """Seconds to the last result, with the whole batch in the scheduler's view."""
    return simulate(lengths, cluster, policy, seed, window_jobs=len(lengths)).makespan


def _longest(
    lengths: Lengths, fleet: Sequence[DeviceKind], step_s: Sequence[float], *, own_context: bool = False
) -> float:
    """The slowest job, each on its fastest device: its prefill and its steps."""
    prompts, outputs = lengths[:, 0].astype(float), lengths[:, 1].astype(float)
    steps = outputs - 1
    least = np.full(len(lengths), np.inf)
    for kind, step in zip(fleet, step_s, strict=True):
        profile = kind.profile
        seconds = profile.prefill_a + profile.prefill_b * prompts + profile.prefill_c * prompts**2 + steps * step
        if own_context:
            seconds += profile.decode_e * steps + profile.decode_f * steps * (prompts + (steps - 1) / 2)
        fits = prompts + outputs <= min(profile.kv_tokens, kind.context_tokens)
        least = np.where(fits, np.minimum(least, kind.slowdown * seconds), least)
    return float(least.max())
