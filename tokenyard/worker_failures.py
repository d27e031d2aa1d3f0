"""Workers that died: when to start each again, and when not any more. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenyard.supervision import STARTS, backoff_s

if TYPE_CHECKING:
    import random


@dataclass(slots=True)
class WorkerFailures:
    """By process name. Times are seconds on any steady clock."""

    rng: random.Random
    not_before: dict[str, float] = field(default_factory=dict[str, float])
    _counts: dict[str, int] = field(default_factory=dict[str, int])
    _starts: dict[str, int] = field(default_factory=dict[str, int])  # that never got ready, one after another
    _proven: set[str] = field(default_factory=set[str])

    def got_ready(self, name: str) -> None:
        """A start came to its end."""
        self._starts.pop(name, None)
        self._proven.add(name)

    def failed(self, name: str, now: float, *, got_ready: bool) -> float:
        """One died; returns how long it is left alone, in seconds: exponential, with jitter."""
        self._counts[name] = 1 if got_ready and self._long_ago(name, now) else self._counts.get(name, 0) + 1
        if not got_ready:
            self._starts[name] = self._starts.get(name, 0) + 1
        wait_s = backoff_s(self._counts[name]) * self.rng.uniform(0.5, 1.0)
        self.not_before[name] = now + wait_s
        return wait_s

    def is_hopeless(self, name: str, *, usage_error: bool) -> bool:
        """Whether it cannot run here: it never did, and tried often, or says itself that its options are wrong."""
        return name not in self._proven and (usage_error or self._starts.get(name, 0) >= STARTS)

    def forget(self, name: str) -> None:
        """A later plan may try it anew."""
        for memory in (self.not_before, self._counts, self._starts):
            memory.pop(name, None)

    def _long_ago(self, name: str, now: float) -> bool:
        """Whether the failure before is a minute past: this is the first of a new kind."""
        return now - self.not_before.get(name, float("-inf")) > 60.0
