"""Each device in turn, whatever its speed: what most routers do by default. Pure."""

from __future__ import annotations

from typing import ClassVar

from broker.policies.base import Candidate, Offer, Placement, Round, place_in_order


class RoundRobin:
    """The next job goes to the next device; where that one is full, the job waits for it."""

    name: ClassVar[str] = "round_robin"

    def __init__(self) -> None:
        self._last = ""

    def place(self, turn: Round) -> list[Placement]:
        offers = turn.offers
        if not offers:
            return []
        at = next((i for i, offer in enumerate(offers) if offer.device > self._last), 0)

        def pick(candidate: Candidate) -> Offer | None:
            nonlocal at
            offer = offers[at % len(offers)]
            if not offer.fits(candidate):
                return None
            at += 1
            self._last = offer.device
            return offer

        return place_in_order(turn.in_order(), pick)
