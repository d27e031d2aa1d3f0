"""What a placement policy is given and what it answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import msgspec

from broker.jobs import WaitingJob
from broker.kv_room import KvRoom
from broker.throughput import DeviceKind

if TYPE_CHECKING:
    import random

    from broker.backlog import Backlog
    from broker.kv_calendar import KvCalendar
    from broker.window import Line


class Candidate(NamedTuple):
    """A waiting job with its predicted lengths in tokens.

    ``prefix`` names the longest beginning of its prompt that other jobs have, too (empty: none), ``shared_tokens`` is
    the length of that beginning: free on a device that has it cached. ``uncorrected_tokens`` is the predicted output
    before its correction by ``broker.calibration``.
    """

    job: WaitingJob
    prompt_tokens: int
    output_tokens: int
    prefix: str = ""
    shared_tokens: int = 0
    uncorrected_tokens: int = 0


class Placement(msgspec.Struct, frozen=True, gc=False):
    """A decision: this job to that device.

    ``predicted_s`` is the time from dispatch to result that the policy expects (0: it does not say), ``reason`` a
    word on why this device: both are kept with the job, for ``tokenyard explain``. ``step`` is that of the device's
    engine at which the job should have its first token (0: not reckoned).
    """

    job: WaitingJob
    prompt_tokens: int
    output_tokens: int
    device: str
    predicted_s: float = 0.0
    reason: str = ""
    candidate: Candidate | None = None
    step: float = 0.0


@dataclass(slots=True)
class Offer:
    """One device's room in one round of decisions. ``put`` uses it up; nothing outside the round changes.

    Attributes:
        device: name of the device.
        seats: most requests it runs at once.
        kv_tokens: tokens its KV cache holds.
        speed: tokens (prompt and output) a second that it was seen to do; 0 where not known yet.
        slots_left: jobs it may still be given.
        kv_bound: KV tokens its jobs may hold at any time to come.
        outstanding: jobs it has, queued and running.
        outstanding_tokens: the KV tokens that these hold on average while they run.
        kind: its times and sizes, as far as known.
        backlog: what its jobs in flight still cost it.
        calendar: what they hold of its KV memory from now on.
        added_s: seconds of work that it got in this round, but for steps.
        added_steps: steps of the longest job among that.
        busy_s: seconds until what it had before will be done (None: not reckoned yet).
        queued_tokens: prompt tokens that it has still to compute.
        max_batched_tokens: tokens it computes in a step.
        blocked: set by a policy whose job for it does not fit: not worth another look until the device changes.
    """

    device: str
    seats: int
    kv_tokens: int
    speed: float
    slots_left: int
    kv_bound: float
    outstanding: int
    outstanding_tokens: int
    kind: DeviceKind | None = None
    backlog: Backlog | None = None
    calendar: KvCalendar | None = None
    busy_s: float | None = None
    blocked: bool = False
    added_s: float = 0.0
    added_steps: float = 0.0
    queued_tokens: float = 0.0
    max_batched_tokens: int = 1
    _room: KvRoom | None = None

    def fits(self, candidate: Candidate) -> bool:
        """Whether the job may go there now. An idle device takes any job: only its engine can say it is too long."""
        if self.slots_left <= 0:
            return False
        calendar = self.calendar
        if self.outstanding == 0 or calendar is None:
            return True
        prompt_tokens, output_tokens = candidate[1], candidate[2]
        room = self._room or self._kv_room(calendar)
        if prompt_tokens + output_tokens <= room.sure:
            return True
        start = calendar.start(self.queued_tokens + prompt_tokens, self.max_batched_tokens)
        return room.fits(prompt_tokens, output_tokens, start)

    def put(self, candidate: Candidate, predicted_s: float = 0.0, reason: str = "") -> Placement:
        """Use up the room of one job."""
        prompt_tokens, output_tokens = candidate[1], candidate[2]
        self.slots_left -= 1
        self.outstanding += 1
        self.outstanding_tokens += prompt_tokens + output_tokens // 2
        calendar, step = self.calendar, 0.0
        if calendar is None:
            self.kv_bound -= prompt_tokens + output_tokens
        else:
            self.queued_tokens = queued = self.queued_tokens + prompt_tokens
            step = calendar.start(queued, self.max_batched_tokens)
            (self._room or self._kv_room(calendar)).put(prompt_tokens, output_tokens, step)
        return Placement(candidate[0], prompt_tokens, output_tokens, self.device, predicted_s, reason, candidate, step)

    def kv_left(self) -> float:
        """KV tokens free at the peak to come; at least so many, once jobs were put in this round."""
        return self.kv_bound if self.calendar is None else self._kv_room(self.calendar).least()

    def renewed(self) -> None:
        """Its device is not as it was: what was reckoned from it is not true any more."""
        self._room = None
        self.blocked = False
        self.bound()

    def bound(self) -> None:
        """What it got in this round is in flight now."""
        self.busy_s = None
        self.added_s = self.added_steps = 0.0

    def _kv_room(self, calendar: KvCalendar) -> KvRoom:
        if self._room is None:
            self._room = KvRoom(calendar, self.kv_bound)
        return self._room


class CachedPrefixes(Protocol):
    """Where prefixes are believed to be cached; see ``broker.prefix_index``."""

    def held(self, device: str, most: int) -> list[str]:
        """The device's prefixes, the latest first."""
        ...

    def holders_of(self, prefix: str) -> Collection[str]:
        """The devices that have a prefix."""
        ...


class WaitingJobs(Protocol):
    """What waits: jobs in the order in which they should go, and the same by priority and length class."""

    @property
    def lines(self) -> dict[str, Line]: ...

    def __iter__(self) -> Iterator[Candidate]: ...

    def __len__(self) -> int: ...


@dataclass(slots=True)
class Round:
    """One round of decisions.

    Attributes:
        waiting: what waits.
        limit: most jobs to place.
        offers: the room of each device that takes jobs, sorted by name.
        whole: whether ``waiting`` is all there is: no job waits beyond it.
        now: seconds on a monotonic clock.
        rng: the only source of chance.
        open: those of the offers that have room.
        prefixes: where prefixes are cached; None where nobody keeps account of it.
    """

    waiting: WaitingJobs
    offers: Sequence[Offer]
    now: float
    rng: random.Random
    limit: int = 400
    whole: bool = True
    open: list[Offer] = field(default_factory=list[Offer])
    prefixes: CachedPrefixes | None = None

    def in_order(self) -> Iterable[Candidate]:
        """The jobs that this round may place, first come first served in each priority."""
        return islice(self.waiting, self.limit)


class Policy(Protocol):
    """A placement policy. It may remember things between rounds; it reads no clock and rolls no dice of its own."""

    name: ClassVar[str]

    def place(self, turn: Round) -> list[Placement]:
        """Decide one round."""
        ...


def place_in_order(waiting: Iterable[Candidate], pick: Callable[[Candidate], Offer | None]) -> list[Placement]:
    """Place jobs strictly in order, each where ``pick`` says; the first that must wait makes all after it wait.

    Going on with smaller jobs would let them starve a big one for ever.
    """
    placed: list[Placement] = []
    for candidate in waiting:
        offer = pick(candidate)
        if offer is None:
            break
        placed.append(offer.put(candidate))
    return placed
