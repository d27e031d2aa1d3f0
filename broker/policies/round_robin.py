"""Each device in turn, whatever its speed: what most routers do by default. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import ClassVar

from broker.policies.base import Candidate, Offer, Placement, place_in_order


class RoundRobin:
    """The next job goes to the next device; where that one is full, the job waits for it."""

    name: ClassVar[str] = "round_robin"

    def __init__(self) -> None:
        self._last = ""

    def place(
        self, waiting: Iterable[Candidate], offers: Sequence[Offer], now: float, rng: random.Random
    ) -> list[Placement]:
        del now, rng
        if not offers:
            return []
        turn = next((i for i, offer in enumerate(offers) if offer.device > self._last), 0)

        def pick(candidate: Candidate) -> Offer | None:
            nonlocal turn
            offer = offers[turn % len(offers)]
            if not offer.fits(candidate):
                return None
            turn += 1
            self._last = offer.device
            return offer

        return place_in_order(waiting, pick)
