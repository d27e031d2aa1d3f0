"""The end of the work: nothing waits any more, some devices run dry, others still have long to go. Pure.

Two remedies. Jobs that have not started are *recalled* from a device where they would end later than elsewhere: they
wait again, and are placed anew. A job that runs, but has longer to go than it would take from its very start on another
device, is *copied* there: the first result wins, the other run is aborted. A job is recalled for a device that is all
but idle, and copied to one that has room for it and will be done before the job would be where it is.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest, nsmallest

from broker.admission import offer_of
from broker.cluster import Cluster, Device, InFlight
from broker.jobs import WaitingJob
from broker.policies.base import Candidate, Offer
from broker.policies.outlook import own_seconds, predicted_seconds
from broker.throughput import DeviceKind

#: A job is moved or copied only where it would end within this share of the time that it still has to go.
_WORTHWHILE = 0.7
#: Less than this is left alone (seconds): a move takes a round trip, and predictions are not that good.
_LEAST_S = 1.0
#: A device is all but idle while it has fewer jobs than this, or than this share of its seats.
_FEW, _FEW_SHARE = 2, 0.01
#: Looked at in one go: the jobs that have longest to go, the devices that are done first and those that are fastest.
_MOST_RUNS, _MOST_OFFERS = 64, 16
_SOME_STEPS = 100
#: A job that outlasts its prediction is taken to need this share of what it has done again: lengths that nobody could
#: predict have long tails, and the longer a job has run, the longer it still will. It does where it has done so many
#: times as many steps as predicted, and some more: when it began is not known to the step.
_OVERTIME, _OVERDUE, _OVERDUE_STEPS = 0.5, 1.1, 16


@dataclass(frozen=True, slots=True)
class JobCopy:
    """A decision: run this job a second time, on that device."""

    job: InFlight
    source: str
    device: str
    predicted_s: float


@dataclass(slots=True)
class EndGame:
    """What to do: by device the jobs to recall, where they have not started; and the copies to make."""

    recalls: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    copies: list[JobCopy] = field(default_factory=list[JobCopy])


def end_game(cluster: Cluster, copied: Container[str], round_trip_s: float) -> EndGame:
    """Decide, where nothing waits.

    Args:
        cluster: the devices and what they have in flight.
        copied: ids of jobs that have a copy already.
        round_trip_s: time a device queue must hide, as for ``offer_of``.
    """
    devices = [device for device in cluster.ready() if device.kind is not None]
    offers = [offer for device in devices if (offer := offer_of(device, round_trip_s)).slots_left > 0]
    if not offers or len(devices) < 2:
        return EndGame()
    decided = EndGame()
    idle = [offer for offer in offers if offer.outstanding < max(_FEW, _FEW_SHARE * offer.seats)]
    for device in devices:
        _recall(device, idle, decided)
    if decided.recalls:  # these go first: what room they leave is for copies
        return decided
    runs = [run for device in devices for run in _runs(device)]
    ends = _ends(runs)
    worth_a_look = _worth_a_look(offers, ends)
    for left, device, job in nlargest(_MOST_RUNS, runs, key=lambda run: run[0]):
        if left < _LEAST_S:
            break
        if job.job_id not in copied:
            _copy(device, job, left, worth_a_look, ends, decided)
    return decided


def _recall(device: Device, offers: Sequence[Offer], decided: EndGame) -> None:
    """The youngest jobs, as many as lie behind the device's seats, where another device would end one sooner."""
    seats = device.heartbeat.seats
    behind = len(device.in_flight) - seats - max(1, seats // 16)
    others = [offer for offer in offers if offer.device != device.name]
    if behind <= 0 or not others:
        return
    room = sum(offer.slots_left for offer in others)
    for job in list(device.in_flight.values())[-min(behind, room) :]:
        here = device.seconds_a_step * (job.output_tokens + job.output_tokens / 2)  # a seat first comes free
        tokens = job.prompt_tokens + job.output_tokens
        there = (
            predicted_seconds(offer, job.prompt_tokens, job.output_tokens)
            for offer in others
            if offer.kind is not None and offer.kind.can_hold(tokens)
        )
        if min(there, default=here) < _WORTHWHILE * here:
            decided.recalls.setdefault(device.name, []).append(job.job_id)


def _runs(device: Device) -> Iterator[tuple[float, Device, InFlight]]:
    """Seconds that each job of a device still takes there.

    Nothing comes to take the seats of those that end, so the steps grow shorter, as the profile says. What is overdue
    is no better known than to the present step; nor is anything on a device that stalls.
    """
    kind = device.kind
    if kind is None:
        return
    running, context, seconds, steps = len(device.in_flight), device.tokens_in_flight, 0.0, 0.0
    stalls = _stalls(device, kind)
    by_end = sorted(((_steps_left(device, job), job) for job in device.in_flight.values()), key=lambda run: run[0])
    for more, (left, job) in enumerate(by_end):
        seats = min(running - more, device.heartbeat.seats)
        seconds += (left - steps) * kind.profile.decode_step_seconds(seats, max(context, 0)) * kind.slowdown
        steps = left
        context -= job.prompt_tokens + job.output_tokens
        as_now = stalls or _is_overdue(device, job)
        yield (left * device.seconds_a_step if as_now else seconds), device, job


def _stalls(device: Device, kind: DeviceKind) -> bool:
    """Whether its steps take longer than such as are full of prompts would."""
    longest = kind.profile.prefill_seconds(device.max_batched_tokens)
    longest += kind.profile.decode_step_seconds(device.heartbeat.seats, kind.profile.kv_tokens)
    return device.seconds_a_step > longest * kind.slowdown


def _ends(runs: Iterable[tuple[float, Device, InFlight]]) -> dict[str, float]:
    """By device: seconds until the last of its jobs is done."""
    ends: dict[str, float] = {}
    for left, device, _ in runs:
        ends[device.name] = max(left, ends.get(device.name, 0.0))
    return ends


def _worth_a_look(offers: Sequence[Offer], ends: Mapping[str, float]) -> list[Offer]:
    """The devices that are done first, and those that are fastest."""
    first = nsmallest(_MOST_OFFERS, offers, key=lambda o: ends.get(o.device, 0.0))
    fastest = nsmallest(_MOST_OFFERS, offers, key=lambda o: predicted_seconds(o, 1, _SOME_STEPS))
    return list({offer.device: offer for offer in (*first, *fastest)}.values())


def _copy(
    device: Device, job: InFlight, left: float, offers: Sequence[Offer], ends: dict[str, float], decided: EndGame
) -> None:
    """Copy a job to where it ends soonest, unless what is there would end later for it than the job itself now does."""
    best: tuple[float, Offer] | None = None
    output_tokens = _output_tokens(device, job)
    candidate = Candidate(_waiting(job), job.prompt_tokens, output_tokens)
    tokens = job.prompt_tokens + output_tokens
    for offer in offers:
        if offer.device == device.name or not (offer.kind and offer.kind.can_hold(tokens)):
            continue
        if offer.outstanding >= offer.seats or not offer.fits(candidate):
            continue
        if ends.get(offer.device, 0.0) + own_seconds(offer, job.prompt_tokens, output_tokens) > left:
            continue
        seconds = predicted_seconds(offer, job.prompt_tokens, output_tokens)
        if seconds < _WORTHWHILE * left and (best is None or seconds < best[0]):
            best = seconds, offer
    if best is not None:
        seconds, offer = best
        own = own_seconds(offer, job.prompt_tokens, output_tokens)
        ends[offer.device] = max(ends.get(offer.device, 0.0) + own, seconds)
        offer.put(candidate)
        decided.copies.append(JobCopy(job, device.name, offer.device, seconds))


def _waiting(job: InFlight) -> WaitingJob:
    """The job as if it waited."""
    return WaitingJob(job.job_id, "", "", "", "", job.body_bytes, job.max_tokens, job.prefix)


def _steps_left(device: Device, job: InFlight) -> float:
    """Steps that a job in flight still takes where it is."""
    done = _steps_done(device, job)
    if not _is_overdue(device, job):
        return max(job.output_tokens - done, 1.0)
    return min(_OVERTIME * done, max(job.max_tokens - done, 1.0) if job.max_tokens else float("inf"))


def _is_overdue(device: Device, job: InFlight) -> bool:
    """Whether a job has outlasted its prediction."""
    return _steps_done(device, job) > _OVERDUE * job.output_tokens + _OVERDUE_STEPS


def _steps_done(device: Device, job: InFlight) -> float:
    return max(device.calendar.step - job.step, 0.0)


def _output_tokens(device: Device, job: InFlight) -> int:
    """Tokens that a job will have generated, by what is known now."""
    return max(job.output_tokens, round(_steps_done(device, job) + _steps_left(device, job)))
