"""What a placement policy is given and what it answers. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from broker.jobs import WaitingJob


class Candidate(NamedTuple):
    """A waiting job with its predicted lengths in tokens."""

    job: WaitingJob
    prompt_tokens: int
    output_tokens: int


class Placement(NamedTuple):
    """A decision: this job to that device."""

    job: WaitingJob
    prompt_tokens: int
    output_tokens: int
    device: str


@dataclass(slots=True)
class Offer:
    """One device's room in one round of decisions. ``put`` uses it up; nothing outside the round changes.

    Attributes:
        device: name of the device.
        seats: most requests it runs at once.
        kv_tokens: tokens its KV cache holds.
        speed: tokens (prompt and output) a second that it was seen to do; 0 where not known yet.
        slots_left: jobs it may still be given.
        kv_left: KV tokens it may still be given.
        outstanding: jobs it has, queued and running.
        outstanding_tokens: their predicted tokens.
    """

    device: str
    seats: int
    kv_tokens: int
    speed: float
    slots_left: int
    kv_left: int
    outstanding: int
    outstanding_tokens: int

    def fits(self, candidate: Candidate) -> bool:
        """Whether the job may go there now. An idle device takes any job: only its engine can say it is too long."""
        if self.slots_left <= 0:
            return False
        return self.outstanding == 0 or candidate.prompt_tokens + candidate.output_tokens <= self.kv_left

    def put(self, candidate: Candidate) -> Placement:
        """Use up the room of one job."""
        tokens = candidate.prompt_tokens + candidate.output_tokens
        self.slots_left -= 1
        self.kv_left -= tokens
        self.outstanding += 1
        self.outstanding_tokens += tokens
        return Placement(*candidate, self.device)


class Policy(Protocol):
    """A placement policy. It may remember things between rounds; it reads no clock and rolls no dice of its own."""

    name: ClassVar[str]

    def place(
        self, waiting: Iterable[Candidate], offers: Sequence[Offer], now: float, rng: random.Random
    ) -> list[Placement]:
        """Decide one round.

        Args:
            waiting: jobs in the order in which they should go.
            offers: the room of each device that takes jobs, sorted by name.
            now: seconds on a monotonic clock.
            rng: the only source of chance.
        """
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
