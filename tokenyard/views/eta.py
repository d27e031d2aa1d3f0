"""When a batch will have ended, from the jobs that ended lately. Pure."""

from __future__ import annotations

from workers.rates import RateWindow

#: Jobs end in waves; over this long they even out (seconds).
_WINDOW_S = 60.0


class Eta:
    """Follows one batch."""

    def __init__(self) -> None:
        self._ended = RateWindow(_WINDOW_S)

    def update(self, now: float, ended: int, total: int) -> float | None:
        """Seconds that the rest will take; None where nothing tells.

        Args:
            now: seconds.
            ended: jobs that have ended.
            total: jobs there are.
        """
        jobs_per_s, _ = self._ended.add(now, ended, 0)
        if ended >= total:
            return 0.0
        return (total - ended) / jobs_per_s if jobs_per_s > 0 else None

    def pause(self) -> None:
        """Nothing runs now: the time until work begins (again) says nothing about its speed."""
        self._ended = RateWindow(_WINDOW_S)
