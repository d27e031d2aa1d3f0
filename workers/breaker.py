"""Notices an engine that fails whatever it is asked, so that it does not use up the attempts of a whole queue. Pure.

Such an engine answers at once, so it has room at once, and a queue would run dry into it. So this is a circuit breaker
(https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker): after some failures in a row its worker
rests, then one request is tried; if that fails, too, it rests for longer.
"""

from __future__ import annotations

#: So many failures in a row are the engine's, not the requests'.
MOST_IN_A_ROW = 5
#: No rest is longer (seconds).
LONGEST_S = 10.0


class Breaker:
    """Counts what the engine answered; only failures that may pass (5xx and the like) are failures here.

    Args:
        first_s: the first rest (seconds); each further one is twice as long, until a request succeeds.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._next_s = first_s
        self._in_a_row = 0
        self.trying = False  # after a rest: one request at a time, until one succeeds

    @property
    def tripped(self) -> bool:
        """Whether it is time to rest."""
        return self._in_a_row >= (1 if self.trying else MOST_IN_A_ROW)

    def answered(self, *, failed: bool) -> None:
        """The engine answered a request."""
        if failed:
            self._in_a_row += 1
        else:
            self._in_a_row, self._next_s, self.trying = 0, self._first_s, False

    def rest(self) -> float:
        """Seconds to rest now."""
        seconds = min(self._next_s, LONGEST_S)
        self._in_a_row, self._next_s, self.trying = 0, 2 * seconds, True
        return seconds
