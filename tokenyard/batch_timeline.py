"""The time line of a batch, from its ended jobs. Pure."""

from __future__ import annotations

import numpy as np

from tokenyard.ended_jobs import Ending, Floats, JobColumns
from tokenyard.views.timeline import Bar, Timeline

#: With up to so many jobs on a device, each is drawn as a bar of its own.
_FEW_JOBS = 40
#: A job that takes less than a millisecond counts as taking that: Redis' stamps are no finer (seconds).
_SHORTEST_S = 1e-3


def timeline_of(jobs: JobColumns, intervals: int = 600) -> Timeline:
    """What each device did, from the first dispatch to the last end, in intervals of equal length.

    A job runs from its start to its end and its tokens are spread evenly over that time: when each of them was
    computed, a result does not say.

    Args:
        jobs: as ``JobColumns.ran`` has them, one at least.
        intervals: how many.
    """
    zero = jobs.dispatched.min()
    start = np.maximum(jobs.started, jobs.dispatched) - zero
    end = np.maximum(jobs.ended - zero, start + _SHORTEST_S)
    edges = np.linspace(0.0, end.max(), intervals + 1)
    shape = (len(jobs.devices), intervals)
    running, prompt, output = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for n in range(len(jobs.devices)):
        mine = jobs.device == n
        s, e = start[mine], end[mine]
        running[n] = mean_rates(s, e, np.ones(len(s)), edges)
        prompt[n] = mean_rates(s, e, jobs.prompt_tokens[mine] / (e - s), edges)
        output[n] = mean_rates(s, e, jobs.output_tokens[mine] / (e - s), edges)
    return Timeline(jobs.devices, edges, running, prompt, output, bars=_bars(jobs, start, end))


def mean_rates(start: Floats, end: Floats, rate: Floats, edges: Floats) -> Floats:
    """The mean of a sum of rates in each interval, where rate i holds from ``start[i]`` to ``end[i]``. Exact.

    Up to a time t, rate r from s to e adds up to ``r * max(0, t - s) - r * max(0, t - e)``; with the times sorted,
    prefix sums give that for all of them at once.
    """
    total = _ramps(start, rate, edges) - _ramps(end, rate, edges)
    return np.maximum(np.diff(total) / np.diff(edges), 0.0)


def _ramps(begin: Floats, rate: Floats, at: Floats) -> Floats:
    order = np.argsort(begin, kind="stable")
    begun = np.searchsorted(begin[order], at, side="right")
    rates = np.concatenate([[0.0], np.cumsum(rate[order])])
    offsets = np.concatenate([[0.0], np.cumsum(rate[order] * begin[order])])
    return at * rates[begun] - offsets[begun]


def _bars(jobs: JobColumns, start: Floats, end: Floats) -> tuple[Bar, ...]:
    if np.bincount(jobs.device, minlength=1).max() > _FEW_JOBS:
        return ()
    ok = jobs.ending == Ending.DONE
    return tuple(
        Bar(int(n), float(s), float(e), bool(good)) for n, s, e, good in zip(jobs.device, start, end, ok, strict=True)
    )
