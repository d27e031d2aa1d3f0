"""The device with the fewest outstanding jobs, blind to speed: what better load balancers do. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import ClassVar

from broker.policies.base import Candidate, Offer, Placement
from broker.policies.least_loaded import place_least_loaded


class LeastOutstanding:
    """Fewest jobs queued and running wins."""

    name: ClassVar[str] = "least_outstanding"

    def place(
        self, waiting: Iterable[Candidate], offers: Sequence[Offer], now: float, rng: random.Random
    ) -> list[Placement]:
        del now, rng
        return place_least_loaded(waiting, offers, lambda offer: offer.outstanding)
