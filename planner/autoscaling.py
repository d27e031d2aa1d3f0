"""How many of a plan's workers should run now, by the predicted time to drain. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from broker.pool_plan import PlannedWorker, PoolPlan
from planner.resizing import Load


@dataclass(frozen=True, slots=True)
class ScaleTerms:
    """How many workers run.

    Attributes:
        drain_s: seconds in which what waits should be done.
        cool_down_s: a worker stops when for so long fewer were enough.
    """

    drain_s: float = 60.0
    cool_down_s: float = 300.0


def needed_tokens_per_s(load: Load, drain_s: float) -> float:
    """The rate that keeps up with what arrives and does what waits in ``drain_s`` seconds."""
    return load.tokens_per_s + load.backlog_tokens / max(drain_s, 1.0)


def workers_needed(rates: Sequence[float], needed: float) -> int:
    """How many of the workers, in this order, reach that rate: all where they do not.

    A worker whose rate is not known (0) counts nothing: with work to do, it runs.
    """
    reached = 0.0
    for count, rate in enumerate(rates):
        if reached >= needed:
            return count
        reached += rate
    return len(rates)


@dataclass(slots=True)
class Scaler:
    """How many of a plan's workers run: at once more, fewer only after the cool-down.

    Where the predicted time to drain is short enough with fewer, the most that were needed in the last ``cool_down_s``
    seconds go on (as the stabilization window of Kubernetes' Horizontal Pod Autoscaler).
    """

    terms: ScaleTerms
    _seen: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])

    def observe(self, now: float, load: Load, start_s: float = 0.0) -> float:
        """The rate to provide now, tokens a second.

        Args:
            now: seconds on any steady clock.
            load: what there is to do.
            start_s: seconds that a worker takes to start: what drains sooner does not wait for one.
        """
        needed = needed_tokens_per_s(load, max(self.terms.drain_s, start_s))
        while self._seen and self._seen[-1][1] <= needed:  # what came before and needed less is never the most again
            self._seen.pop()
        self._seen.append((now, needed))
        while self._seen[0][0] < now - self.terms.cool_down_s:
            self._seen.popleft()
        return self._seen[0][1]


def workers_to_run(plan: PoolPlan, host: str, needed: float, least: int, most: int) -> list[PlannedWorker]:
    """Those of a host's workers that should run, in the plan's order.

    The pool's fastest workers run first; every host reckons the same from the same plan.

    Args:
        plan: the pool's plan.
        host: whose workers.
        needed: tokens a second that the pool should do.
        least: at least so many of this host run; the plan's ``min_workers`` counts, too.
        most: and at most so many.
    """
    order = sorted(plan.workers, key=lambda worker: (-worker.tokens_per_s, worker.name))
    running = {w.name for w in order[: workers_needed([w.tokens_per_s for w in order], needed)]}
    own = [w for w in order if w.host == host]
    chosen = _first(own, running, max(least, plan.min_workers), most)
    return [w for w in plan.workers if w.name in chosen]


def _first(own: Iterable[PlannedWorker], running: Collection[str], least: int, most: int) -> set[str]:
    names = [w.name for w in own]
    wanted = [name for name in names if name in running]
    more = [name for name in names if name not in running]
    wanted += more[: max(least - len(wanted), 0)]
    return set(wanted[:most])
