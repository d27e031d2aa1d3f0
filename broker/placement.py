"""The scheduler's mind: what waits, what the devices have, and the next decisions. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import structs

from broker.admission import offer_of, renew_offer
from broker.calibration import Calibration
from broker.cluster import Cluster, Device, InFlight
from broker.endgame import EndGame, end_game
from broker.jobs import WaitingJob
from broker.lengths import LengthModel
from broker.policies.base import Candidate, Offer, Placement, Policy, Round
from broker.prefix_index import PrefixIndex
from broker.prefixes import parse_marks
from broker.window import Window

if TYPE_CHECKING:
    import random

#: Most jobs that one decision moves: bounds the length of one Lua call.
MAX_PLACEMENTS = 400
#: Waiting jobs are filed under new predictions no more often than this (seconds), and the less often the more wait.
_LEAST_INTERVAL_S = 0.5
_INTERVAL_A_JOB_S = 1e-3
#: A shared beginning shorter than this (tokens) is not worth a detour.
_LEAST_PREFIX = 128
#: Policies that see to the end of the work, too. The others are what people use today, as they use it.
_FINISHING = frozenset({"throughput"})


class Lengths(Protocol):
    """Predicts lengths in tokens and learns from what ended."""

    def predict(self, job: WaitingJob) -> tuple[int, int]:
        """Prompt and output tokens of a job."""
        ...

    def observe(self, job: InFlight, prompt_tokens: int, output_tokens: int) -> bool:
        """A job ended with these lengths (0 where it failed). True where predictions changed enough to be made anew."""
        ...


@dataclass(slots=True)
class Placer:
    """State and rules of one pool's placement; every input is an argument, every output a value.

    ``whole`` says whether the window holds all that waits: only then the end of the work can be seen.
    """

    policy: Policy
    rng: random.Random
    round_trip_s: float
    cluster: Cluster = field(default_factory=Cluster)
    window: Window = field(default_factory=Window)
    lengths: Lengths = field(default_factory=LengthModel)
    calibration: Calibration = field(default_factory=Calibration)
    whole: bool = True
    _offers: dict[str, Offer] = field(default_factory=dict[str, Offer])
    _names: list[str] = field(default_factory=list[str])
    _prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    _stale: bool = False  # predictions have moved since the window was filed
    _predicted_at: float = float("-inf")
    _copied: dict[str, str] = field(default_factory=dict[str, str])  # job -> device of its second run
    _open: dict[str, Offer] = field(default_factory=dict[str, Offer])

    def add(self, job: WaitingJob) -> None:
        """A job waits."""
        if job.prefix:
            self._prefixes.seen(parse_marks(job.prefix))
        self.window.add(self._candidate(job))

    def _candidate(self, job: WaitingJob) -> Candidate:
        prompt, raw = self.lengths.predict(job)
        output = self.calibration.correct(raw, job.max_tokens)
        shared = self._prefixes.shared(parse_marks(job.prefix)) if job.prefix else None
        if shared is None:
            return Candidate(job, prompt, output, uncorrected_tokens=raw)
        tokens = self._prefixes.mark_tokens(shared, prompt, job.body_bytes)
        return Candidate(job, prompt, output, shared.digest, tokens if tokens >= _LEAST_PREFIX else 0, raw)

    def decide(self, now: float) -> dict[str, list[Placement]]:
        """The next jobs to dispatch, by device. They count as in flight from here on; see ``take_back``."""
        self._refresh_offers(now)
        if self._stale and now - self._predicted_at >= _LEAST_INTERVAL_S + _INTERVAL_A_JOB_S * len(self.window):
            self._stale, self._predicted_at = False, now
            self.window.predict_anew(self._candidate)
        if not self._open or not len(self.window):
            return {}
        offers = _Offers(self._names, self._offers)
        turn = Round(
            self.window, offers, now, self.rng, MAX_PLACEMENTS, self.whole, list(self._open.values()), self._prefixes
        )
        groups: dict[str, list[Placement]] = {}
        guessed = self.calibration.guessed
        for placement in self.policy.place(turn):
            groups.setdefault(placement.device, []).append(placement)
            self.window.remove(placement.job)
            self._bind(placement, now, guessed)
        for name in groups:
            self._offers[name].bound()
        self.cluster.changed.clear()  # the offers know already
        for offer in turn.open:
            if offer.blocked:
                self._open.pop(offer.device, None)
                self.cluster.devices[offer.device].kv_share.blocked = offer.slots_left > 0
        return groups

    def _bind(self, placement: Placement, now: float, guessed: bool) -> None:
        """The job counts as in flight from here on."""
        job, prompt, output, name, seconds, _, candidate = placement
        device = self.cluster.devices[name]
        cached = self._cached(placement, device) if job.prefix else 0
        raw = candidate.uncorrected_tokens if candidate else 0
        step, sizes = device.start(prompt - cached), (job.body_bytes, job.max_tokens)
        device.bind(InFlight(job.job_id, prompt, output, *sizes, now, seconds, step, cached, job.prefix, raw, guessed))

    def _cached(self, placement: Placement, device: Device) -> int:
        """Tokens of its prompt that the job will find in the device's prefix cache."""
        job, prompt, output = placement[:3]
        return self._prefixes.placed(
            device.name,
            parse_marks(job.prefix),
            prompt_tokens=prompt,
            prompt_bytes=job.body_bytes,
            kv_tokens=prompt + output,
            cache_tokens=device.heartbeat.kv_tokens_total,
        )

    def finish_up(self, now: float) -> EndGame:
        """What to do where nothing waits, and some devices run dry while others have long to go.

        Recalled jobs are forgotten by ``forget`` once they are back; copies count as in flight from here on.
        """
        if len(self.window) or not self.whole or self.policy.name not in _FINISHING:
            return EndGame()
        for device in self.cluster.devices.values():
            device.pass_time(now)
        decided = end_game(self.cluster, self._copied, self.round_trip_s)
        for copy in decided.copies:
            self._copied[copy.job.job_id] = copy.device
            device = self.cluster.devices[copy.device]
            device.bind(
                structs.replace(copy.job, dispatched=now, predicted_s=copy.predicted_s, step=device.calendar.step)
            )
        return decided

    def uncopy(self, device: str, job_id: str) -> None:
        """A copy could not be made."""
        self._copied.pop(job_id, None)
        self.forget(device, [job_id])

    def take_back(self, placements: Iterable[Placement]) -> None:
        """Undo decisions that could not be carried out: their devices take no jobs now."""
        undone = list(placements)
        for placement in undone:
            self.forget(placement.device, [placement.job.job_id])
        candidates = [self._candidate(p.job) for p in undone]
        self.window.put_back(sorted(candidates, key=_age))

    def close(self, device: str) -> None:
        """This device takes no jobs until its next heartbeat says so."""
        known = self.cluster.devices.get(device)
        if known is not None and known.heartbeat.state == "ready":
            known.heartbeat = known.heartbeat.model_copy(update={"state": "draining"})
            self.cluster.changed.add(device)

    def forget(self, device: str, job_ids: Iterable[str]) -> None:
        """These jobs are not on that device any more."""
        known = self.cluster.devices.get(device)
        if known is not None:
            for job_id in job_ids:
                known.unbind(job_id)

    def completed(self, device: str, ended: Mapping[str, tuple[int, ...]], now: float) -> None:
        """Jobs ended: job id -> true prompt and output tokens, and the prompt tokens that were cached if told."""
        known = self.cluster.devices.get(device)
        if known is None:
            return
        anew = False
        for job_id, (prompt_tokens, output_tokens, *told) in ended.items():
            self._copied.pop(job_id, None)
            cached = told[0] if told else 0
            job = known.unbind(job_id, prompt_tokens - cached)
            if job is None:
                continue
            anew |= self.lengths.observe(job, prompt_tokens, output_tokens)
            if prompt_tokens and job.uncorrected_tokens:
                anew |= self.calibration.observe(job.uncorrected_tokens, output_tokens)
            if job.cached_tokens and told and prompt_tokens:
                self._prefixes.observe(device, parse_marks(job.prefix), job.cached_tokens, cached)
        known.count_completed(len(ended), now)
        self._stale |= anew

    def _refresh_offers(self, now: float) -> None:
        """Look only at devices that are not as they were: with a thousand of them, few change in one round."""
        for name in sorted(self.cluster.changed):  # a set's own order is another in each process
            device = self.cluster.devices.get(name)
            if device is None or not device.ready:
                self._prefixes.forget(name)
                if self._offers.pop(name, None):
                    del self._names[bisect_left(self._names, name)]
                self._open.pop(name, None)
                continue
            device.pass_time(now)
            offer = self._offers.get(name)
            if offer is None:
                insort(self._names, name)
                offer = self._offers[name] = offer_of(device, self.round_trip_s, many_wait=not self.whole)
            else:
                renew_offer(offer, device, self.round_trip_s, many_wait=not self.whole)
            if offer.slots_left > 0:
                self._open[name] = offer
            else:
                self._open.pop(name, None)
        self.cluster.changed.clear()


class _Offers(Sequence[Offer]):
    """All offers by name, without a copy: few policies look at each."""

    def __init__(self, names: list[str], offers: Mapping[str, Offer]) -> None:
        self._names, self._offers = names, offers

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._offers[self._names[index]]

    def __iter__(self) -> Iterator[Offer]:
        return map(self._offers.__getitem__, self._names)


def _age(candidate: Candidate) -> tuple[int, int]:
    """Order within a line: that of the stream."""
    milliseconds, _, sequence = candidate.job.entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)
