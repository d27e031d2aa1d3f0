"""The time line of a simulated run. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.simulate import Outcome, Requests, SimulatedDevice
from planner.simulated import Floats, Ints
from tokenyard.batch_timeline import mean_rates
from tokenyard.views.timeline import Bar, Timeline

#: With up to so many jobs on a device, each is drawn as a bar of its own.
_FEW_JOBS = 40
#: A device's own counts are drawn where each device told them this often at least.
_FEW_SAMPLES = 10
_SHORTEST_S = 1e-6


def timeline_of(
    requests: Requests, devices: Sequence[SimulatedDevice], outcome: Outcome, intervals: int = 600
) -> Timeline:
    """What each device did, from 0 to the last result. A job counts as running from its dispatch on.

    Args:
        requests: what came, one at least.
        devices: the cluster.
        outcome: what became of it, one job done at least.
        intervals: how many, of equal length.
    """
    edges = np.linspace(0.0, max(outcome.makespan, _SHORTEST_S), intervals + 1)
    jobs = [np.flatnonzero((outcome.device == n) & np.isfinite(outcome.finished)) for n in range(len(devices))]
    seats = np.array([[device.kind.profile.seats] for device in devices])
    running = [_running(mine, outcome, edges) for mine in jobs]
    told = min(len(samples) for samples in outcome.samples) >= _FEW_SAMPLES
    if told:
        tokens = [_tokens_told(samples, edges) for samples in outcome.samples]
    else:
        tokens = [_tokens_spread(mine, requests, outcome, edges) for mine in jobs]
    return Timeline(
        devices=tuple(device.name for device in devices),
        edges=edges,
        running=np.minimum(np.array(running), seats),
        prompt_tokens_per_s=np.array([prompt for prompt, _ in tokens]),
        output_tokens_per_s=np.array([output for _, output in tokens]),
        kv_share=_kv_share(devices, outcome, edges) if told else None,
        bars=_bars(outcome, len(devices)),
    )


def _running(mine: Ints, outcome: Outcome, edges: Floats) -> Floats:
    start, _, end = _times(mine, outcome)
    return mean_rates(start, end, np.ones(len(mine)), edges)


def _tokens_told(samples: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Prompt and output tokens a second, from the engine's own counts."""
    prompt, output = (np.diff(np.interp(edges, samples[:, 0], samples[:, n])) / np.diff(edges) for n in (3, 4))
    return prompt, output


def _tokens_spread(mine: Ints, requests: Requests, outcome: Outcome, edges: Floats) -> tuple[Floats, Floats]:
    """The same in a run too short for counts: prompts spread over the time to the first token."""
    start, first, end = _times(mine, outcome)
    prompt = mean_rates(start, first, requests.prompt_tokens[mine] / (first - start), edges)
    return prompt, mean_rates(first, end, requests.output_tokens[mine] / (end - first), edges)


def _times(mine: Ints, outcome: Outcome) -> tuple[Floats, Floats, Floats]:
    """Dispatch, first token and end of jobs; none follows at once upon another."""
    start = outcome.dispatched[mine]
    first = np.where(np.isfinite(outcome.first_token[mine]), outcome.first_token[mine], outcome.finished[mine])
    first = np.maximum(first, start + _SHORTEST_S)
    return start, first, np.maximum(outcome.finished[mine], first + _SHORTEST_S)


def _kv_share(devices: Sequence[SimulatedDevice], outcome: Outcome, edges: Floats) -> Floats:
    middle = (edges[1:] + edges[:-1]) / 2
    parts = zip(devices, outcome.samples, strict=True)
    held = [np.interp(middle, s[:, 0], s[:, 2]) / device.kind.profile.kv_tokens for device, s in parts]
    return np.clip(np.array(held), 0.0, 1.0)


def _bars(outcome: Outcome, devices: int) -> tuple[Bar, ...]:
    done = np.flatnonzero(np.isfinite(outcome.finished))
    if np.bincount(outcome.device[done], minlength=devices).max() > _FEW_JOBS:
        return ()
    return tuple(Bar(int(outcome.device[i]), float(outcome.dispatched[i]), float(outcome.finished[i])) for i in done)
