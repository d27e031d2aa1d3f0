"""Whose turn it is among results that came in another order than their requests. Pure."""

from __future__ import annotations

import heapq
from typing import NamedTuple


class Place(NamedTuple):
    """Where a result lies: position of its request in the input, pool and cursor of its result."""

    position: int
    pool: str
    cursor: str


class InputOrder:
    """Holds places back until all before them have come. A place takes some 200 bytes, whatever its result's size."""

    def __init__(self) -> None:
        self._held: list[Place] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, place: Place) -> None:
        """A result has come."""
        heapq.heappush(self._held, place)

    def due(self, limit: int, *, is_end: bool = False) -> list[Place]:
        """Places whose turn it is, in order, at most ``limit``.

        Args:
            limit: at least 1.
            is_end: no more come: gaps hold nothing back.
        """
        found: list[Place] = []
        while self._held and len(found) < limit and (is_end or self._held[0].position <= self._next):
            place = heapq.heappop(self._held)
            self._next = max(self._next, place.position + 1)
            found.append(place)
        return found
