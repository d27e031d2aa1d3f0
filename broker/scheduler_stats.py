"""What a scheduler counts of itself. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

#: Upper bounds of the classes that decision times are counted in (seconds); one more class is open.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@dataclass(slots=True)
class SchedulerStats:
    """Counts since the process started, over all its terms as leader of a pool.

    Attributes:
        passes: passes of decisions, by their time.
        decision_s: time of all passes, seconds.
        dispatched: jobs bound to a device; ``completed``: ended there; ``returned``: left it without a result.
        dead_workers: workers declared dead.
        length_error: mean error of predicted output lengths of late, as a share of the mean output.
    """

    passes: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    decision_s: float = 0.0
    dispatched: int = 0
    completed: int = 0
    returned: int = 0
    dead_workers: int = 0
    length_error: float = 0.0

    def decided(self, seconds: float, placed: int) -> None:
        """A pass of decisions placed so many jobs."""
        self.passes[bisect_left(BUCKETS_S, seconds)] += 1
        self.decision_s += seconds
        self.dispatched += placed
