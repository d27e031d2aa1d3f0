"""How much of a device's KV memory to speak for, corrected by what its engine is seen to do. Pure.

The calendar of ``broker.kv_calendar`` counts on predicted lengths. Where these are too long, memory stays empty that
could hold more jobs; where they are too short, the engine runs out of it, lets requests wait and preempts some, whose
prompts it computes again. Both show in heartbeats, whatever the reason, and move the share the other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from broker.kv_calendar import Array, KvCalendar

#: Where to begin: blocks are not quite full, and lengths not quite known.
_FIRST = 0.98
_LEAST, _MOST = 0.4, 4.0
#: Below this share in use there is room that predictions do not see; above that one the engine runs out of it.
_ROOMY = 0.91
_FULL = 0.95
#: The share grows by this part of what is missing to full, and shrinks by this part, each second.
_GROW = 0.5
_SHRINK = 0.06
#: Requests that wait in the engine, as a share of those that run, without being a sign of want: they just came.
_WAITING = 0.02


@dataclass(slots=True)
class FirstFill:
    """How full an engine should be by now that was empty a while ago, by what the calendar said when it was filled."""

    _forecast: Array | None = None
    _last: int = -1  # number of the bin with the peak

    def expected(self, calendar: KvCalendar) -> float:
        """Tokens that should be held by now; infinite once the first peak is past, or where it never was empty."""
        if not calendar.jobs:
            self._forecast, self._last = None, -1
            return inf
        if self._forecast is None:
            load = calendar.load(1)
            self._forecast = load[: int(load.argmax()) + 1].copy()
            self._last = calendar.bin + len(self._forecast) - 1
        left = self._last - calendar.bin
        return float(self._forecast[-1 - left]) if left >= 0 else inf


@dataclass(slots=True)
class KvShare:
    """The share of the KV memory that jobs may hold by the calendar; above 1 where predictions are too long."""

    value: float = _FIRST
    blocked: bool = False

    def observe(
        self, elapsed: float, used: float, to_come: float, running: int, waiting: int, expected: float = 1.0
    ) -> None:
        """Learn from a heartbeat.

        Args:
            elapsed: seconds since the one before.
            used: share of the KV memory in use.
            to_come: share that prompts will use which are not computed yet.
            running: requests in the engine's batch.
            waiting: requests that wait in the engine.
            expected: share that the calendar counted on to be in use by now: jobs that all began a while ago have still
                to grow.
        """
        seconds = min(elapsed, 2.0)
        if used > _FULL and waiting > 1 + _WAITING * running:
            self.value *= 1 - _SHRINK * seconds
        elif self.blocked and used + to_come < _ROOMY * min(expected, 1.0):
            self.value *= 1 + _GROW * seconds * (_ROOMY * min(expected, 1.0) - used - to_come)
        self.value = min(max(self.value, _LEAST), _MOST)
        self.blocked = False
