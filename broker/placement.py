"""The scheduler's mind: what waits, what the devices have, and the next decisions. Pure."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from broker.admission import offer_of
from broker.cluster import Cluster, InFlight
from broker.jobs import Priority, WaitingJob
from broker.lengths import LengthModel
from broker.policies.base import Candidate, Placement, Policy

#: Most jobs that one decision moves: bounds the length of one Lua call.
MAX_PLACEMENTS = 400


@dataclass(slots=True)
class Window:
    """The head of the request streams: by priority, jobs that came back before those that never left."""

    returned: dict[str, OrderedDict[str, WaitingJob]] = field(
        default_factory=lambda: {p.value: OrderedDict[str, WaitingJob]() for p in Priority}
    )
    fresh: dict[str, OrderedDict[str, WaitingJob]] = field(
        default_factory=lambda: {p.value: OrderedDict[str, WaitingJob]() for p in Priority}
    )

    def add(self, job: WaitingJob) -> None:
        """Take a job up at the end of its line."""
        lines = self.returned if job.level == "returned" else self.fresh
        lines.get(job.priority, lines[Priority.NORMAL.value])[job.job_id] = job

    def put_back(self, jobs: Iterable[WaitingJob]) -> None:
        """Jobs that could not be dispatched go to the front of their lines, in their order."""
        for job in reversed(list(jobs)):
            lines = self.returned if job.level == "returned" else self.fresh
            line = lines.get(job.priority, lines[Priority.NORMAL.value])
            line[job.job_id] = job
            line.move_to_end(job.job_id, last=False)

    def remove(self, job: WaitingJob) -> None:
        """Take a job out."""
        for lines in (self.returned, self.fresh):
            for line in lines.values():
                if line.pop(job.job_id, None) is not None:
                    return

    def of_batch(self, batch_id: str) -> list[WaitingJob]:
        """The jobs of one batch."""
        return [job for job in self if job.batch_id == batch_id]

    def count(self, level: str) -> int:
        """Jobs held of one request stream."""
        if level == "returned":
            return sum(len(line) for line in self.returned.values())
        return len(self.fresh[level])

    def __iter__(self) -> Iterator[WaitingJob]:
        """All jobs in the order in which they should go."""
        for priority in Priority:
            yield from self.returned[priority.value].values()
            yield from self.fresh[priority.value].values()

    def __len__(self) -> int:
        return sum(len(line) for lines in (self.returned, self.fresh) for line in lines.values())


@dataclass(slots=True)
class Placer:
    """State and rules of one pool's placement; every input is an argument, every output a value."""

    policy: Policy
    rng: random.Random
    round_trip_s: float
    cluster: Cluster = field(default_factory=Cluster)
    window: Window = field(default_factory=Window)
    lengths: LengthModel = field(default_factory=LengthModel)

    def decide(self, now: float) -> dict[str, list[Placement]]:
        """The next jobs to dispatch, by device. They count as in flight from here on; see ``take_back``."""
        offers = sorted(
            (offer_of(device, self.round_trip_s) for device in self.cluster.ready()), key=lambda o: o.device
        )
        if not len(self.window) or not any(offer.slots_left > 0 for offer in offers):
            return {}
        predict = self.lengths.predict
        candidates = (Candidate(job, *predict(job)) for job in islice(self.window, MAX_PLACEMENTS))
        groups: dict[str, list[Placement]] = {}
        for placement in self.policy.place(candidates, offers, now, self.rng):
            groups.setdefault(placement.device, []).append(placement)
            self.window.remove(placement.job)
            job = placement.job
            self.cluster.devices[placement.device].bind(
                InFlight(job.job_id, placement.prompt_tokens, placement.output_tokens, job.body_bytes)
            )
        return groups

    def take_back(self, placements: Iterable[Placement]) -> None:
        """Undo decisions that could not be carried out: their devices take no jobs now."""
        undone = list(placements)
        for placement in undone:
            self.forget(placement.device, [placement.job.job_id])
        self.window.put_back(sorted((placement.job for placement in undone), key=_age))

    def close(self, device: str) -> None:
        """This device takes no jobs until its next heartbeat says so."""
        known = self.cluster.devices.get(device)
        if known is not None and known.heartbeat.state == "ready":
            known.heartbeat = known.heartbeat.model_copy(update={"state": "draining"})

    def forget(self, device: str, job_ids: Iterable[str]) -> None:
        """These jobs are not on that device any more."""
        known = self.cluster.devices.get(device)
        if known is not None:
            for job_id in job_ids:
                known.unbind(job_id)

    def completed(self, device: str, ended: Mapping[str, tuple[int, int]], now: float) -> None:
        """Jobs ended: job id -> true prompt and output tokens."""
        known = self.cluster.devices.get(device)
        if known is None:
            return
        for job_id, (prompt_tokens, output_tokens) in ended.items():
            job = known.unbind(job_id)
            if job is not None:
                self.lengths.observe(job.body_bytes, prompt_tokens, output_tokens)
        known.count_completed(len(ended), now)


def _age(job: WaitingJob) -> tuple[int, int]:
    """Order within a line: that of the stream."""
    milliseconds, _, sequence = job.entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)
