"""Which faults come, and when. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")

#: Every kind of fault, with its weight: how often it comes beside the others.
KINDS = {
    "worker killed": 6,
    "worker stopped, shorter than it may be silent": 2,
    "worker stopped, declared dead, resumed": 3,
    "leading scheduler killed": 3,
    "leading scheduler stopped and resumed": 2,
    "standby scheduler killed": 1,
    "client killed": 3,
    "Redis killed, restarted on its file": 2,
    "Redis replaced by its replica": 1,
    "Redis stopped and resumed": 1,
    "Redis stutters": 1,
    "Redis out of memory": 1,
    "Redis' disk full": 1,
    "Redis' clock forward": 1,
    "Redis' clock back": 1,
    "engine answers 500": 1,
    "engine overloaded (503)": 1,
    "engine limits the rate (429)": 1,
    "engine breaks connections off": 1,
    "engine sends half an answer": 1,
    "engine killed, restarted": 1,
}
CLOCK_KINDS = frozenset(kind for kind in KINDS if "clock" in kind)
#: Of the servers that some workers are attached to.
ENGINE_KINDS = frozenset(kind for kind in KINDS if kind.startswith("engine"))


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        number: counted from 1.
        at: seconds after the first may come.
        kind: one of ``KINDS``.
        extent: 0 to 1: how long or how far, within what the kind means.
        pick: 0 to 1: which of those that it may strike.
    """

    number: int
    at: float
    kind: str
    extent: float
    pick: float


def draw(rng: Random, count: int, seconds: float, kinds: Sequence[str]) -> list[Fault]:
    """Faults in the order in which they come: each kind in turn by its weight, shuffled, at random times."""
    deck: list[str] = []
    while len(deck) < count:
        hand = [kind for kind in kinds for _ in range(KINDS[kind])]
        rng.shuffle(hand)
        if not deck:  # a short run sees as many kinds as it can
            first = list(kinds)
            rng.shuffle(first)
            deck += first
        deck += hand
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [
        Fault(number, at, kind, rng.random(), rng.random())
        for number, (at, kind) in enumerate(zip(times, deck, strict=False), 1)
    ]


def choose(fault: Fault, among: Sequence[T]) -> T:
    """The one that a fault strikes."""
    return among[int(fault.pick * len(among)) % len(among)]


def between(fault: Fault, least: float, most: float) -> float:
    """The fault's extent as a number of that range."""
    return least + fault.extent * (most - least)
