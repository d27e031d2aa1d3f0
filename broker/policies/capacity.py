"""The paper's idea: weigh each device's measured speed and its KV memory together. Pure.

After *High-Throughput LLM inference on Heterogeneous Clusters* (arXiv 2504.15303), whose scheduler gives a request
to the instance with the lowest workload relative to its processing capacity and memory. The load used here is
the time the device needs for what it has, ``outstanding tokens / speed``, divided by the share of its KV memory
that is not yet spoken for: a device near the end of its memory is about to queue or to preempt.
"""

from __future__ import annotations

from statistics import fmean
from typing import ClassVar

from broker.policies.base import Offer, Placement, Round
from broker.policies.least_loaded import place_least_loaded

#: The share of free memory is never taken as less than this: the load stays finite.
_LEAST_FREE_SHARE = 0.02


class Capacity:
    """Least load wins; a device not measured yet counts as one of mean speed."""

    name: ClassVar[str] = "capacity"

    def place(self, turn: Round) -> list[Placement]:
        measured = [offer.speed for offer in turn.offers if offer.speed > 0]
        typical = fmean(measured) if measured else 1.0

        def load(offer: Offer) -> float:
            drain_s = (offer.outstanding_tokens + 1) / (offer.speed or typical)
            free = 1 - offer.outstanding_tokens / max(offer.kv_tokens, 1)
            return drain_s / max(free, _LEAST_FREE_SHARE)

        return place_least_loaded(turn.in_order(), turn.offers, load)
