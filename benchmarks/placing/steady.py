"""How much of the bound a policy reaches while the backlog lasts: a simulated run, and what is counted of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from benchmarks.cluster import BenchmarkError
from benchmarks.placing.bound import Bound, Floats
from benchmarks.placing.devices import Cluster
from benchmarks.placing.lengths import Lengths
from broker.policies import make_policy
from broker.throughput import DeviceKind
from planner.simulate import KnownLengths, Outcome, Requests, Simulation

#: The scheduler sees so many jobs of the backlog.
WINDOW_JOBS = 2048
#: What comes before this share of the run is its start, and not counted.
_START = 0.35
#: A run lasts so many times as long as a job of much output (90th percentile) is on the slowest device.
_RESIDENCES = 6
_MUCH_OUTPUT = 90


@dataclass(frozen=True, slots=True)
class Steady:
    """A policy's steady state.

    Attributes:
        share_of_bound: work done a second, in the cluster's seconds by the bound's prices: at most 1, but for what was
            in progress when the time began.
        share_of_requests: requests ended a second over the bound's, whatever their lengths.
        seconds: how long was counted.
        preemptions: times a request lost its KV memory.
        refused: jobs given to a device that could never hold them.
    """

    share_of_bound: float
    share_of_requests: float
    seconds: float
    preemptions: int
    refused: int = 0


def simulate(
    lengths: Lengths,
    cluster: Cluster,
    policy: str,
    seed: int,
    *,
    factor: float | None = 1.0,
    window_jobs: int = WINDOW_JOBS,
) -> Outcome:
    """All requests wait from the start. Predicted outputs are the true ones times ``factor``; None: learned."""
    requests = Requests(np.zeros(len(lengths)), lengths[:, 0], lengths[:, 1])
    known = None if factor is None else KnownLengths(requests, factor)
    simulation = Simulation(
        requests,
        cluster.devices(),
        make_policy(policy),
        random.Random(seed),
        lengths=known,
        window_jobs=window_jobs,
    )
    return simulation.run()


def steady_state(outcome: Outcome, bound: Bound) -> Steady:
    """What was done between the start and the moment at which the last job entered the scheduler's window.

    A job in progress at either end counts in part: its prompt where its first token lies between, the rest in
    proportion to the time from there to its end that does.

    Raises:
        BenchmarkError: there was no such time: all jobs fit the devices at once.
    """
    end = outcome.last_seen_at
    start = _START * end
    seconds = end - start
    if end <= float(np.nanmin(outcome.finished)):
        raise BenchmarkError("too few jobs for a steady state: raise --jobs or --seconds")
    done = _done(outcome, bound, start, end)
    ended = (outcome.finished > start) & (outcome.finished <= end)
    return Steady(
        share_of_bound=float(done.sum()) / seconds,
        share_of_requests=float(ended.sum()) / seconds / bound.requests_per_s,
        seconds=seconds,
        preemptions=outcome.preemptions,
        refused=outcome.refused,
    )


def run_seconds(lengths: Lengths, cluster: Cluster, least: float) -> float:
    """How long a run should be for a long steady state."""
    much, context = float(np.percentile(lengths[:, 1], _MUCH_OUTPUT)), mean_context(lengths)
    return max(least, _RESIDENCES * max(much * full_step_seconds(kind, context) for kind in cluster.fleet))


def jobs_held(lengths: Lengths, cluster: Cluster) -> float:
    """How many jobs of that mix a cluster runs at once."""
    return sum(kind.count * held_by(kind, mean_context(lengths)) for kind in cluster.fleet)


def mean_context(lengths: Lengths) -> float:
    """KV tokens that a request holds, on average over the requests and their steps."""
    return float((lengths[:, 0] + lengths[:, 1] / 2).mean())


def full_step_seconds(kind: DeviceKind, context_tokens: float) -> float:
    """A decode step with as many requests of that mean context as the device holds."""
    running = held_by(kind, context_tokens)
    return kind.slowdown * kind.profile.decode_step_seconds(running, running * context_tokens)


def held_by(kind: DeviceKind, context_tokens: float) -> float:
    """Requests of that mean context that a device runs at once."""
    return max(1.0, min(kind.profile.seats, kind.profile.kv_tokens / context_tokens))


def _done(outcome: Outcome, bound: Bound, start: float, end: float) -> Floats:
    """By request: the part of its worth that was done between."""
    first, finished = outcome.first_token, outcome.finished
    prompt = bound.prefill_worth * ((first > start) & (first <= end))
    inside = np.clip(finished, start, end) - np.clip(first, start, end)
    decoding = (bound.worth - bound.prefill_worth) * inside / np.maximum(finished - first, 1e-9)
    # What was refused did not end; a single token is all prompt.
    return prompt + np.where(finished > first, decoding, 0.0)
