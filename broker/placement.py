"""The scheduler's mind: what waits, what the devices have, and the next decisions. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import structs

from broker.admission import jobs_a_look, offer_of, renew_offer
from broker.calibration import Calibration
from broker.cluster import Cluster, Device, InFlight
from broker.endgame import EndGame, end_game
from broker.jobs import WaitingJob
from broker.lengths import LengthModel
from broker.policies.base import Candidate, Offer, Placement, Policy, Round
from broker.prefix_index import PrefixIndex
from broker.prefixes import parse_marks
from broker.quarantine import Quarantine
from broker.tenant_names import DEFAULT_TENANT, tenant_of
from broker.tenant_windows import TenantWindows
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
    quarantine: Quarantine = field(default_factory=Quarantine)
    whole: bool = True
    tenants: TenantWindows = field(default_factory=TenantWindows)
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
        if job.deaths:
            self.quarantine.add(job)
        else:
            self.tenants.of(job.batch_id, self.window).add(self._candidate(job))

    def _candidate(self, job: WaitingJob) -> Candidate:
        prompt, raw = self.lengths.predict(job)
        output = self.calibration.correct(raw, job.max_tokens)
        shared = self._prefixes.shared(parse_marks(job.prefix)) if job.prefix else None
        if shared is None:
            return Candidate(job, prompt, output, uncorrected_tokens=raw)
        tokens = self._prefixes.mark_tokens(shared, prompt, job.body_bytes)
        return Candidate(job, prompt, output, shared.digest, tokens if tokens >= _LEAST_PREFIX else 0, raw)

    def waiting(self) -> Iterator[WaitingJob]:
        """All jobs that wait here."""
        yield from self.quarantine.waiting.values()
        for candidate in self.window:
            yield candidate.job
        yield from self.tenants.jobs()

    def of_batch(self, batch_id: str) -> list[WaitingJob]:
        """The waiting jobs of one batch."""
        window = self.tenants.of(batch_id, self.window)
        return self.quarantine.of_batch(batch_id) + window.of_batch(batch_id)

    def remove(self, job: WaitingJob) -> None:
        """A job does not wait any more."""
        self.quarantine.remove(job.job_id)
        self.tenants.of(job.batch_id, self.window).remove(job)

    def decide(self, now: float) -> dict[str, list[Placement]]:
        """The next jobs to dispatch, by device. They count as in flight from here on; see ``take_back``."""
        self._refresh_offers(now)
        groups = self._place_suspects(now) if self.quarantine.active else {}
        if self._stale and now - self._predicted_at >= _LEAST_INTERVAL_S + _INTERVAL_A_JOB_S * len(self.window):
            self._stale, self._predicted_at = False, now
            for window in (self.window, *self.tenants.windows.values()):
                window.predict_anew(self._candidate)
        if self.tenants.active:
            self._place_in_turns(now, groups)
        elif self._open and len(self.window):
            self._place(self.policy, self.window, MAX_PLACEMENTS, self.whole, now, groups)
        return groups

    def _place_in_turns(self, now: float, groups: dict[str, list[Placement]]) -> None:
        """Several tenants: each places some of its jobs, who has had least goes first."""

        def place(tenant: str, window: Window, most: int, alone: bool) -> int:
            policy = self.tenants.policy_of(tenant, self.policy)
            return self._place(policy, window, most, self.whole and alone, now, groups) if self._open else 0

        windows = {DEFAULT_TENANT: self.window, **self.tenants.windows}
        self.tenants.turns({t: w for t, w in windows.items() if len(w)}, MAX_PLACEMENTS, place)
        self.tenants.tidy()

    def _place(
        self, policy: Policy, window: Window, limit: int, whole: bool, now: float, groups: dict[str, list[Placement]]
    ) -> int:
        """Let a policy place jobs of one window; returns how many it did."""
        offers = _Offers(self._names, self._offers)
        turn = Round(window, offers, now, self.rng, limit, whole, list(self._open.values()), self._prefixes)
        placements = policy.place(turn)
        placed: dict[str, list[Placement]] = {}
        for placement in placements:
            placed.setdefault(placement.device, []).append(placement)
            window.remove(placement.job)
        for name, jobs in placed.items():
            groups.setdefault(name, []).extend(jobs)
            self._bind(self.cluster.devices[name], jobs, now)
            offer = self._offers[name]
            offer.bound()
            if offer.slots_left <= 0:
                self._open.pop(name, None)
        self.cluster.changed.clear()  # the offers know already
        for offer in turn.open:
            if offer.blocked:
                self._open.pop(offer.device, None)
                self.cluster.devices[offer.device].kv_share.blocked = offer.slots_left > 0
        return len(placements)

    def _place_suspects(self, now: float) -> dict[str, list[Placement]]:
        """Jobs that may have killed a worker go first, and keep to themselves; see ``broker.quarantine``."""
        devices = {device.name: device for device in self.cluster.ready()}
        candidates = {job_id: self._candidate(job) for job_id, job in self.quarantine.waiting.items()}

        def can_hold(job: WaitingJob, name: str) -> bool:
            kind, candidate = devices[name].kind, candidates[job.job_id]
            return kind is None or kind.can_hold(candidate.prompt_tokens + candidate.output_tokens)

        def fits(job: WaitingJob, name: str) -> bool:
            return name in self._offers and self._offers[name].fits(candidates[job.job_id])

        before = set(self.quarantine.reserved)
        states = [self.quarantine.state_of(n, len(d.in_flight), d.suspects.values()) for n, d in devices.items()]
        groups: dict[str, list[Placement]] = {}
        for job, name in self.quarantine.decide(states, can_hold, fits):
            _, prompt, output, *_ = candidate = candidates[job.job_id]
            placement = Placement(job, prompt, output, name, reason="quarantine", candidate=candidate)
            groups.setdefault(name, []).append(placement)
            self._bind(devices[name], [placement], now)
        self.cluster.changed |= before ^ self.quarantine.reserved
        self._refresh_offers(now)
        return groups

    def _bind(self, device: Device, placements: Iterable[Placement], now: float) -> None:
        """A device's jobs count as in flight from here on."""
        guessed, ledger = self.calibration.guessed, self.tenants.ledger if self.tenants.active else None
        for placement in placements:
            job, prompt, output, step = placement.job, placement.prompt_tokens, placement.output_tokens, placement.step
            cached = self._cached(placement, device) if job.prefix else 0
            raw = placement.candidate.uncorrected_tokens if placement.candidate else 0
            if cached or not step:
                step = device.start(prompt - cached)
            bound = InFlight(
                job.job_id, prompt, output, job.body_bytes, job.max_tokens, now, placement.predicted_s, step,
                cached, job.prefix, raw, guessed, job.deaths, job.charges,
            )  # fmt: skip
            device.bind(bound)
            if ledger is not None:
                cost = _device_seconds(device, prompt - cached, output)
                ledger.placed(job.job_id, tenant_of(job.batch_id), cost)

    def _cached(self, placement: Placement, device: Device) -> int:
        """Tokens of its prompt that the job will find in the device's prefix cache."""
        job, prompt, output = placement.job, placement.prompt_tokens, placement.output_tokens
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
        if any(len(w) for w in (self.window, *self.tenants.windows.values())) or not self.whole:
            return EndGame()
        if self.quarantine.active or self.policy.name not in _FINISHING:
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
            if placement.job.deaths:
                self.quarantine.add(placement.job)
        by_window: dict[str, list[Candidate]] = {}
        for placement in undone:
            if not placement.job.deaths:
                tenant = tenant_of(placement.job.batch_id)
                by_window.setdefault(tenant, []).append(self._candidate(placement.job))
        for candidates in by_window.values():
            window = self.tenants.of(candidates[0].job.batch_id, self.window)
            window.put_back(sorted(candidates, key=_age))

    def close(self, device: str) -> None:
        """This device takes no jobs until its next heartbeat says so."""
        known = self.cluster.devices.get(device)
        if known is not None and known.heartbeat.state == "ready":
            known.heartbeat = known.heartbeat.model_copy(update={"state": "draining"})
            self.cluster.changed.add(device)

    def forget(self, device: str, job_ids: Iterable[str], *, back: bool = True) -> None:
        """These jobs are not on that device any more; ``back``: nor on another, they wait or have ended."""
        known = self.cluster.devices.get(device)
        for job_id in job_ids:
            if back:
                self.tenants.ledger.undo(job_id)
            if known is not None:
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
            if self.tenants.active:
                self.tenants.ledger.ended(job_id, _device_seconds(known, prompt_tokens - cached, output_tokens))
            job = known.unbind(job_id, prompt_tokens - cached, prompt_tokens + output_tokens, now)
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
        one_in = jobs_a_look(len(self.cluster.devices), many_wait=not self.whole)
        for name in sorted(self.cluster.changed):  # a set's own order is another in each process
            device = self.cluster.devices.get(name)
            if device is None or not device.ready or name in self.quarantine.reserved:
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
                offer = self._offers[name] = offer_of(device, self.round_trip_s, now, one_in)
            else:
                renew_offer(offer, device, self.round_trip_s, now, one_in)
            if offer.slots_left > 0:
                self._open[name] = offer
            else:
                self._open.pop(name, None)
        self.cluster.changed.clear()


def _device_seconds(device: Device, prompt_tokens: int, output_tokens: int) -> float:
    """What a job costs a device, by its profile and how slow it is now; tokens where it has told nothing yet."""
    kind = device.kind
    if kind is None:
        return 1e-3 * (prompt_tokens + output_tokens)
    return kind.profile.device_seconds(max(prompt_tokens, 0), max(output_tokens, 0)) * kind.slowdown


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
