"""Jobs, devices and rounds for tests of placement."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster_fixtures import heartbeat

from broker.cluster import Cluster, Device, InFlight
from broker.heartbeat import Heartbeat
from broker.jobs import WaitingJob
from broker.placement import Placer
from broker.policies import make_policy
from broker.policies.base import Candidate, Offer, Placement, Round
from broker.profiles import profile_text
from broker.throughput import Profile
from broker.window import Window

#: A device about as fast as an accelerator with an 8B model, and small, so that it is soon full.
PROFILE = Profile(0.01, 5e-5, 1e-9, 0.01, 4e-5, 8e-8, kv_tokens=20_000, seats=8)
ROUND_TRIP_S = 0.02


def slower(profile: Profile, factor: float, **sizes: int) -> Profile:
    """A device that takes ``factor`` times as long for everything."""
    return replace(profile.slower(factor), **sizes)


def job(
    i: int, level: str = "normal", priority: str = "", batch: str = "b", body_bytes: int = 40, max_tokens: int = 0
) -> WaitingJob:
    """A waiting job; the younger the higher its number."""
    priority = priority or (level if level != "returned" else "normal")
    return WaitingJob(f"{batch}.{i}", level, f"{1000 + i // 3}-{i % 3}", batch, priority, body_bytes, max_tokens)


def candidate(i: int, prompt: int = 10, output: int = 20, level: str = "normal", priority: str = "") -> Candidate:
    """A waiting job of these lengths."""
    return Candidate(job(i, level, priority), prompt, output)


def beat(profile: Profile | None = PROFILE, *, told: bool = True, **fields: Any) -> Heartbeat:
    """The heartbeat of an idle device; without a profile it has no KV memory that we know of."""
    if profile is None:
        return heartbeat(**({"kv_tokens_total": 0, "kv_tokens_free": 0} | fields))
    sizes = {"seats": profile.seats, "kv_tokens_total": profile.kv_tokens, "kv_tokens_free": profile.kv_tokens}
    known = {"context_tokens": 0, "profile": profile_text(profile) if told else ""}
    return heartbeat(**(sizes | known | fields))


def device(name: str, profile: Profile | None = PROFILE, *, told: bool = True, **fields: Any) -> Device:
    """A device as the scheduler knows it after its first heartbeat."""
    cluster = Cluster()
    cluster.refresh(name, beat(profile, told=told, **fields))
    return cluster.devices[name]


def busy(one: Device, jobs: Iterable[tuple[int, int]], prefix: str = "busy") -> Device:
    """Bind jobs of these lengths to a device."""
    for i, lengths in enumerate(jobs):
        one.bind(InFlight(f"{prefix}.{one.name}{i}", *lengths, step=one.calendar.step))
    return one


def window_of(waiting: Iterable[Candidate]) -> Window:
    """A window that holds these."""
    window = Window()
    for one in waiting:
        window.add(one)
    return window


def ids(jobs: Iterable[Candidate]) -> list[str]:
    """Their ids, in this order."""
    return [one.job.job_id for one in jobs]


def round_of(waiting: Iterable[Candidate], offers: Sequence[Offer], **fields: Any) -> Round:
    """A round of decisions over copies of the offers."""
    mine = sorted((replace(offer) for offer in offers), key=lambda offer: offer.device)
    fields = {"now": 0.0, "rng": random.Random(0), "open": [o for o in mine if o.slots_left > 0]} | fields
    return Round(window_of(waiting), mine, **fields)


class FixedLengths:
    """Predicts what it was told; learns nothing."""

    def __init__(self, lengths: Mapping[str, tuple[int, int]], other: tuple[int, int] = (10, 20)) -> None:
        self.lengths = lengths
        self.other = other

    def predict(self, job: WaitingJob) -> tuple[int, int]:
        return self.lengths.get(job.job_id, self.other)

    def observe(self, job: InFlight, prompt_tokens: int, output_tokens: int) -> bool:
        return False


def placer_of(*devices: Device, policy: str = "capacity") -> Placer:
    """A placer that knows these devices."""
    placer = Placer(make_policy(policy), random.Random(0), ROUND_TRIP_S)
    for one in devices:
        placer.cluster.devices[one.name] = one
        one.changed = placer.cluster.changed
        placer.cluster.changed.add(one.name)
    return placer


def placements(groups: Mapping[str, Sequence[Placement]]) -> list[Placement]:
    """All of them, device after device."""
    return [placement for group in groups.values() for placement in group]
