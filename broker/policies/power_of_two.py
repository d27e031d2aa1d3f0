"""The better of two devices picked at random (Mitzenmacher, 2001). Pure."""

from __future__ import annotations

from typing import ClassVar

from broker.policies.base import Candidate, Offer, Placement, Round, place_in_order


class PowerOfTwo:
    """Two random devices with room; the one with fewer outstanding jobs wins."""

    name: ClassVar[str] = "power_of_two"

    def place(self, turn: Round) -> list[Placement]:
        open_offers = list(turn.offers)

        def pick(candidate: Candidate) -> Offer | None:
            while open_offers:
                pair = turn.rng.sample(range(len(open_offers)), min(2, len(open_offers)))
                fitting = [i for i in pair if open_offers[i].fits(candidate)]
                if fitting:
                    return min((open_offers[i] for i in fitting), key=lambda offer: offer.outstanding)
                for i in sorted(pair, reverse=True):  # full: out for this round
                    open_offers[i] = open_offers[-1]
                    open_offers.pop()
            return None

        return place_in_order(turn.in_order(), pick)
