"""The least loaded device first, for any measure of load. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

from broker.policies.base import Candidate, Offer, Placement, place_in_order


def place_least_loaded(
    waiting: Iterable[Candidate], offers: Sequence[Offer], load: Callable[[Offer], float]
) -> list[Placement]:
    """Place each job on the device of least load that has room; ties go to the first name.

    A heap keeps a decision at O(log devices). A device that cannot take the job at hand is out for this round.
    """
    heap = [(load(offer), i) for i, offer in enumerate(offers)]
    heapq.heapify(heap)

    def pick(candidate: Candidate) -> Offer | None:
        while heap:
            offer = offers[heap[0][1]]
            if offer.fits(candidate):
                return offer
            heapq.heappop(heap)
        return None

    placed: list[Placement] = []
    for candidate in waiting:
        step = place_in_order((candidate,), pick)
        if not step:
            break
        placed += step
        index = heap[0][1]
        heapq.heapreplace(heap, (load(offers[index]), index))
    return placed
