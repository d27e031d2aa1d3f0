"""The device with the fewest outstanding jobs, blind to speed: what better load balancers do. Pure."""

from __future__ import annotations

from typing import ClassVar

from broker.policies.base import Placement, Round
from broker.policies.least_loaded import place_least_loaded


class LeastOutstanding:
    """Fewest jobs queued and running wins."""

    name: ClassVar[str] = "least_outstanding"

    def place(self, turn: Round) -> list[Placement]:
        return place_least_loaded(turn.in_order(), turn.offers, lambda offer: offer.outstanding)
