"""How much of a device's KV memory to speak for, corrected by what its engine is seen to do. Pure.

The calendar of ``broker.kv_calendar`` counts on predicted lengths. Where these are too long, memory stays empty that
could hold more jobs; where they are too short, the engine runs out of it, lets requests wait and preempts some, whose
prompts it computes again. Both show in heartbeats, whatever the reason, and move the share the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Where to begin: blocks are not quite full, and lengths not quite known.
_FIRST = 0.98
_LEAST, _MOST = 0.4, 4.0
#: Below this share in use there is room that predictions do not see; above that one the engine runs out of it.
_ROOMY = 0.85
_FULL = 0.95
#: The share grows by this part of what is missing to full, and shrinks by this part, each second.
_GROW = 0.5
_SHRINK = 0.06
#: Requests that wait in the engine, as a share of those that run, without being a sign of want: they just came.
_WAITING = 0.02


@dataclass(slots=True)
class KvShare:
    """The share of the KV memory that jobs may hold by the calendar; above 1 where predictions are too long."""

    value: float = _FIRST
    blocked: bool = False

    def observe(self, elapsed: float, used: float, to_come: float, running: int, waiting: int) -> None:
        """Learn from a heartbeat.

        Args:
            elapsed: seconds since the one before.
            used: share of the KV memory in use.
            to_come: share that prompts will use which are not computed yet.
            running: requests in the engine's batch.
            waiting: requests that wait in the engine.
        """
        seconds = min(elapsed, 2.0)
        if used > _FULL and waiting > 1 + _WAITING * running:
            self.value *= 1 - _SHRINK * seconds
        elif self.blocked and used + to_come < _ROOMY:
            self.value *= 1 + _GROW * seconds * (_ROOMY - used - to_come)
        self.value = min(max(self.value, _LEAST), _MOST)
        self.blocked = False
