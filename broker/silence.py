"""How long workers have been silent, by a clock that does not jump. Pure."""

from __future__ import annotations

from collections.abc import Collection


class Silences:
    """What the scheduler heard of each worker, and when.

    Redis' clock stamps heartbeats. It may be set, so a silence is no difference of two of its times: it is how long the
    stamp has not changed, on the scheduler's own clock. Time in which the scheduler could not look does not count:
    whatever held it up (a Redis that stood still, its own machine asleep) may have held up the workers, too. What it
    counted before stays: a worker that was silent already is not given all its time again.

    Args:
        longest_look_s: seconds from one look to the next that count at most.
    """

    def __init__(self, longest_look_s: float) -> None:
        self._longest_look_s = longest_look_s
        self._looked: float | None = None
        self._counted = 0.0  # seconds between looks that count, since the first
        self._heard: dict[str, tuple[float, float]] = {}  # worker -> stamp, and when it was new, on that count

    def look(self, now: float) -> None:
        """A look begins, ``now`` on the scheduler's clock (seconds)."""
        if self._looked is not None:
            self._counted += min(max(now - self._looked, 0.0), self._longest_look_s)
        self._looked = now

    def interrupt(self) -> None:
        """Redis was away: nobody could be heard from the last look to the next."""
        self._looked = None

    def of(self, name: str, seen: float) -> float:
        """Seconds that a worker has been silent at this look; ``seen`` is the stamp of its last heartbeat."""
        stamp, since = self._heard.get(name, (None, 0.0))
        if stamp != seen:
            self._heard[name] = (seen, self._counted)
            return 0.0
        return self._counted - since

    def keep_only(self, names: Collection[str]) -> None:
        """Forget workers that are gone."""
        self._heard = {name: heard for name, heard in self._heard.items() if name in names}
