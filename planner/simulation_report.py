"""What a simulated run tells: rates, each device's use, latencies, the share of the bound. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.simulate import Outcome, Requests, SimulatedDevice
from planner.simulated import Floats
from planner.simulation_bound import Bound, Reached

#: Samples of a device's KV memory that make a mean.
_FEW_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of times in seconds."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """One device's part.

    Attributes:
        name: its name.
        device: kind of device.
        jobs: jobs it ended.
        prompt_tokens: of these.
        output_tokens: of these.
        tokens_per_s: prompt and output tokens a second of the whole run.
        busy_share: share of the run in which it had a job, 0 to 1.
        jobs_at_once: jobs it had at a time, mean over the run.
        kv_share: share of its KV memory in use, mean over the run, 0 to 1; None where the run was too short to tell.
    """

    name: str
    device: str
    jobs: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float
    busy_share: float
    jobs_at_once: float
    kv_share: float | None


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """One simulated run.

    Attributes:
        policy: what placed the jobs.
        jobs: jobs that came.
        done: jobs that ended well.
        refused: jobs that failed on a device whose KV memory could never hold them.
        makespan_s: seconds to the last result.
        jobs_per_s: jobs done a second.
        prompt_tokens_per_s: of the jobs done.
        output_tokens_per_s: of the jobs done.
        reached: how near that is to the bound.
        devices: a row each.
        arrival_to_result: None where no job was done, like the next three.
        arrival_to_first_token: time to the first token.
        dispatch_to_result: time on the device.
        token_interval: time from an output token to the next, the mean of each job.
        preemptions: times a job lost its KV memory and was computed again.
        copies: second runs of stragglers.
        wasted_tokens: tokens computed by the runs that were not first.
    """

    policy: str
    jobs: int
    done: int
    refused: int
    makespan_s: float
    jobs_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    reached: Reached
    devices: list[DeviceUse]
    arrival_to_result: Percentiles | None
    arrival_to_first_token: Percentiles | None
    dispatch_to_result: Percentiles | None
    token_interval: Percentiles | None
    preemptions: int
    copies: int
    wasted_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Prompt and output tokens."""
        return self.prompt_tokens_per_s + self.output_tokens_per_s


def report_of(
    policy: str, requests: Requests, devices: Sequence[SimulatedDevice], outcome: Outcome, bound: Bound
) -> SimulationReport:
    """The figures of a run.

    Args:
        policy: name of the policy.
        requests: what came.
        devices: the cluster.
        outcome: what became of it.
        bound: of these requests on these devices.
    """
    done = np.isfinite(outcome.finished)
    span, count = outcome.makespan, int(done.sum())
    longer = requests.output_tokens > 1
    steps = np.where(longer, requests.output_tokens - 1, 1)
    return SimulationReport(
        policy=policy,
        jobs=len(requests),
        done=count,
        refused=outcome.refused,
        makespan_s=span,
        jobs_per_s=_rate(count, span),
        prompt_tokens_per_s=_rate(int(requests.prompt_tokens[done].sum()), span),
        output_tokens_per_s=_rate(int(requests.output_tokens[done].sum()), span),
        reached=bound.reached(outcome),
        devices=[_use(n, device, requests, outcome, span) for n, device in enumerate(devices)],
        arrival_to_result=_percentiles(outcome.finished - requests.arrivals),
        arrival_to_first_token=_percentiles(outcome.first_token - requests.arrivals),
        dispatch_to_result=_percentiles(outcome.finished - outcome.dispatched),
        token_interval=_percentiles(((outcome.finished - outcome.first_token) / steps)[longer]),
        preemptions=outcome.preemptions,
        copies=outcome.copies,
        wasted_tokens=outcome.wasted_tokens,
    )


def _use(n: int, device: SimulatedDevice, requests: Requests, outcome: Outcome, span: float) -> DeviceUse:
    mine = (outcome.device == n) & np.isfinite(outcome.finished)
    prompt, output = int(requests.prompt_tokens[mine].sum()), int(requests.output_tokens[mine].sum())
    start, end = outcome.dispatched[mine], outcome.finished[mine]
    held = outcome.samples[n][:, 2]
    return DeviceUse(
        name=device.name,
        device=device.label or device.name,
        jobs=int(mine.sum()),
        prompt_tokens=prompt,
        output_tokens=output,
        tokens_per_s=_rate(prompt + output, span),
        busy_share=min(1.0, _rate(_covered(start, end), span)),
        jobs_at_once=_rate(float((end - start).sum()), span),
        kv_share=float(held.mean()) / device.kind.profile.kv_tokens if len(held) >= _FEW_SAMPLES else None,
    )


def _covered(start: Floats, end: Floats) -> float:
    """Seconds in which at least one of the intervals runs."""
    if not len(start):
        return 0.0
    order = np.argsort(start, kind="stable")
    begin, until = start[order], np.maximum.accumulate(end[order])
    before = np.concatenate([[begin[0]], until[:-1]])
    return float(np.maximum(until - np.maximum(begin, before), 0.0).sum())


def _percentiles(seconds: Floats) -> Percentiles | None:
    known = seconds[np.isfinite(seconds)]
    if not len(known):
        return None
    return Percentiles(*(float(p) for p in np.percentile(known, [50, 90, 95, 99, 100])))


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
