"""What re-planning needs of the search, as a protocol: so that either can change without the other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.pool_plan import PlannedWorker, PoolPlan
from broker.profiles import ProfileRecord
from broker.recent_mix import RecentMix


class Planning(Protocol):
    """Proposes plans for an inventory that it knows."""

    def propose(self, mix: RecentMix, profiles: Sequence[ProfileRecord]) -> PoolPlan:
        """The best plan for this mix; its version and ``made`` do not matter.

        Raises:
            TokenyardError: there is none; the message says which constraint fails.
        """
        ...

    def expected(
        self, workers: Sequence[PlannedWorker], mix: RecentMix, profiles: Sequence[ProfileRecord]
    ) -> float | None:
        """Tokens a second that these workers do together on this mix; None where nothing is known of them."""
        ...
