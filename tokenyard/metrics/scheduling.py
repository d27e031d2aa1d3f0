"""A scheduler's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.scheduler_stats import BUCKETS_S, SchedulerStats


class SchedulerCollector(Collector):
    """What the schedulers of a process count, pool by pool."""

    def __init__(self, stats: Callable[[], Mapping[str, SchedulerStats]]) -> None:
        """Args:
        stats: the counts by pool, as they are now.
        """
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        stats = dict(self._stats())
        text = "Time of one pass of decisions, over all jobs that it placed."
        times = HistogramMetricFamily("tokenyard_scheduler_decision_seconds", text, labels=["pool"])
        for pool, counts in stats.items():
            total, buckets = 0, list[tuple[str, float]]()
            for bound, passes in zip((*map(str, BUCKETS_S), "+Inf"), counts.passes, strict=True):
                total += passes
                buckets.append((bound, total))
            times.add_metric([pool], buckets, counts.decision_s)
        yield times
        yield _counter(stats, "dispatched_jobs", "Jobs bound to a device.", lambda s: s.dispatched)
        yield _counter(stats, "completed_jobs", "Jobs that ended on a device.", lambda s: s.completed)
        yield _counter(stats, "returned_jobs", "Jobs that left a device without a result.", lambda s: s.returned)
        yield _counter(stats, "dead_workers", "Workers declared dead.", lambda s: s.dead_workers)
        text = "Mean error of predicted output lengths, as a share of the mean output."
        error = GaugeMetricFamily("tokenyard_scheduler_length_error_ratio", text, labels=["pool"])
        for pool, counts in stats.items():
            error.add_metric([pool], counts.length_error)
        yield error


def _counter(
    stats: Mapping[str, SchedulerStats], name: str, text: str, value: Callable[[SchedulerStats], float]
) -> Metric:
    family = CounterMetricFamily(f"tokenyard_scheduler_{name}", text, labels=["pool"])
    for pool, counts in stats.items():
        family.add_metric([pool], value(counts))
    return family
