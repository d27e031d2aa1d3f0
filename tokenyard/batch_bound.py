"""How near a batch came to the most that its devices can do. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from broker.fluid import solve
from broker.heartbeat import Heartbeat
from broker.length_class import LengthClass
from broker.throughput import DeviceKind, Work, work_of
from tokenyard.batch_timeline import timeline_of
from tokenyard.device_tally import DeviceTally
from tokenyard.ended_jobs import Ending, Ints, JobColumns
from tokenyard.known_devices import KnownDevice

#: Jobs are put into classes by quantiles of their prompt and output lengths, so many of each.
_QUANTILES = 12
#: Looks at the time line: as often as a worker beats, but no more than so many of all devices together.
_LOOK_S = 0.5
_MOST_LOOKS = 400_000


@dataclass(frozen=True, slots=True)
class Reached:
    """How much of the possible was reached.

    Attributes:
        share: 0 to 1 (a bit above where a device is faster than its profile); None where nothing tells.
        of: what it is a share of: the ``bound`` no scheduler can pass, or the ``ideal``, the sum of each device's best
            sustained rate; empty where there is none.
        bound_jobs_per_s: jobs a second at the bound, None where it is not known.
        note: what is missing for more, in a line; empty where nothing is.
    """

    share: float | None
    of: Literal["bound", "ideal", ""]
    bound_jobs_per_s: float | None = None
    note: str = ""


def reached(ran: JobColumns, devices: Mapping[str, KnownDevice]) -> Reached:
    """What the devices that took part reached from the first dispatch to the last end, by the jobs' true lengths.

    Args:
        ran: as ``JobColumns.ran`` has them.
        devices: what is known of the devices by name; those that did not take part do not matter.
    """
    took_part = [ran.devices[n] for n in np.unique(ran.device)]
    missing = [name for name in took_part if name not in devices or devices[name].kind is None]
    done = ran.select((ran.ending == Ending.DONE) & (ran.prompt_tokens + ran.output_tokens > 0))
    if not len(done):
        return Reached(None, "", note="no job with any tokens is done")
    if missing:
        return Reached(share_of_ideal(ran), "ideal", note=_no_profile(missing, len(took_part)))
    span_s = float(ran.ended.max() - ran.dispatched.min())
    least_s = bound_seconds(done, {name: devices[name] for name in took_part})
    if span_s <= 0 or least_s <= 0:
        return Reached(None, "", note="the profiles say that these jobs take no time")
    return Reached(least_s / span_s, "bound", len(done) / least_s)


def bound_seconds(done: JobColumns, devices: Mapping[str, KnownDevice]) -> float:
    """The least time in which these devices can do these jobs (``broker.fluid``); each pool does its own.

    Jobs count by length class; the mean work of a class is exact, only its spread over devices is as coarse as the
    classes are.
    """
    pool_of = np.array([devices[name].pool if name in devices else "" for name in done.devices])
    least = 0.0
    for pool in {device.pool for device in devices.values()}:
        mine = done.select(pool_of[done.device] == pool)
        kinds = _kinds([device for device in devices.values() if device.pool == pool])
        if len(mine):
            least = max(least, solve(_classes(mine), kinds).seconds)
    return least


def share_of_ideal(ran: JobColumns) -> float | None:
    """``DeviceTally.share_of_ideal`` from the results alone: each device beats as its jobs say it would have."""
    span_s = float(ran.ended.max() - ran.dispatched.min())
    looks = int(max(20, min(span_s / _LOOK_S, _MOST_LOOKS / len(ran.devices))))
    timeline = timeline_of(ran, looks)
    work = timeline.prompt_tokens_per_s + timeline.output_tokens_per_s
    totals = np.cumsum(work * np.diff(timeline.edges), axis=1).round().astype(int)
    tally = DeviceTally()
    for n, name in enumerate(timeline.devices):
        for i, at in enumerate(timeline.edges):
            running = int(np.ceil(timeline.running[n, min(i, looks - 1)]))
            beat = _beat(float(at) + 1.0, running, int(totals[n, i - 1]) if i else 0)
            tally.observe(beat.seen, name, beat)
    return tally.share_of_ideal()


def _beat(seen: float, running: int, tokens: int) -> Heartbeat:
    return Heartbeat.model_construct(
        incarnation="-", state="ready", running=running, prompt_tokens_total=0, output_tokens_total=tokens, seen=seen
    )


def _kinds(devices: list[KnownDevice]) -> list[DeviceKind]:
    kinds = Counter(device.kind for device in devices if device.kind is not None)
    return [replace(kind, count=count) for kind, count in kinds.items()]


def _classes(jobs: JobColumns) -> list[LengthClass]:
    lengths = zip(jobs.prompt_tokens, jobs.output_tokens, jobs.cached_tokens, strict=True)
    work = np.fromiter((work_of(*each) for each in lengths), np.dtype((np.float64, len(Work._fields))), len(jobs))
    # The last token generated is never held. The shortest of a class decides where the class may go: a bound must
    # not rule out what could have been.
    held = jobs.prompt_tokens + jobs.output_tokens - 1
    label = _quantile(jobs.prompt_tokens) * (_QUANTILES + 1) + _quantile(jobs.output_tokens)
    masks = [label == value for value in np.unique(label)]
    return [LengthClass(float(m.sum()), Work(*map(float, work[m].mean(axis=0))), int(held[m].min())) for m in masks]


def _quantile(lengths: Ints) -> Ints:
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _QUANTILES + 1)[1:-1]))
    return np.searchsorted(edges, lengths, side="left")


def _no_profile(missing: list[str], of: int) -> str:
    if len(missing) == of:
        return "no profile known: run `tokenyard profile` for the share of the bound"
    return f"no profile known of {len(missing)} of {of} devices: run `tokenyard profile` for the share of the bound"
