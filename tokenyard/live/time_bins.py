"""What went on over time in a bounded number of intervals, however long it takes. Pure."""

from __future__ import annotations

import numpy as np

from tokenyard.batch_timeline import mean_rates
from tokenyard.ended_jobs import Floats

#: The shortest interval (seconds).
_FIRST_S = 0.25


class TimeBins:
    """Amounts over intervals of equal length from a beginning on, in rows by name.

    When the intervals do not reach far enough, each two become one: their number is bounded, no amount is lost.
    """

    def __init__(self, begin: float, most: int = 240) -> None:
        """Args:
        begin: where the first interval begins, seconds; what lies before it counts there.
        most: number of intervals, even.
        """
        self.begin = begin
        self.width_s = _FIRST_S
        self.length = 0  # intervals up to the last in which anything is
        self._most = most
        self._rows: dict[str, Floats] = {}

    def add(self, row: str, start: Floats, end: Floats, rate: Floats) -> None:
        """Add rates to a row, of which number i held from ``start[i]`` to ``end[i]`` (seconds)."""
        if not len(start):
            return
        start = np.maximum(start - self.begin, 0.0)
        end = np.maximum(end - self.begin, start)
        latest = float(end.max())
        while latest > self._most * self.width_s:
            self._widen()
        edges = np.arange(self._most + 1, dtype=np.float64) * self.width_s
        amounts = mean_rates(start, end, rate, edges) * self.width_s
        self._rows[row] = self._rows.get(row, np.zeros(self._most)) + amounts
        self.length = max(self.length, int(np.ceil(latest / self.width_s)))

    def means(self, row: str) -> Floats:
        """The mean of the summed rates in each interval; zeros where there is no such row."""
        return self._rows.get(row, np.zeros(self._most))[: self.length] / self.width_s

    def first(self) -> int:
        """The first interval in which anything is; 0 where nothing is."""
        there = np.flatnonzero(sum(self._rows.values(), np.zeros(self._most)) > 0)
        return int(there[0]) if len(there) else 0

    def _widen(self) -> None:
        self.width_s *= 2
        self.length = -(-self.length // 2)
        for row, amounts in self._rows.items():
            self._rows[row] = np.concatenate([amounts.reshape(-1, 2).sum(axis=1), np.zeros(self._most // 2)])
