"""The report of a chaos run. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.chaotic.injecting import Injected
from benchmarks.chaotic.overlaps import alone
from benchmarks.chaotic.run import Outcome, Terms
from benchmarks.report import Report, Row, Value


def report_of(terms: Terms, outcome: Outcome) -> Report:
    """The tables and figures of a run."""
    found = outcome.findings
    by_itself = alone(outcome.injected)
    overlapping = [i for i in outcome.injected if i not in by_itself]
    times = _times(outcome.injected)
    ratio = outcome.chaos_jobs_per_s / outcome.calm_jobs_per_s if outcome.calm_jobs_per_s else None
    summary: dict[str, Value] = {
        "lost": found.lost,
        "doubled": found.doubled,
        "stuck": found.stuck,
        "wrong": found.wrong,
        "given_up": found.given_up,
        "killers_given_up": found.killers_given_up,
        "jobs": terms.jobs,
        "faults": len(outcome.injected),
        "not_recovered": sum(not i.recovered for i in outcome.injected),
        "recovery_median_s": _median(times),
        "recovery_worst_s": max(times, default=None),
        "faults_alone": len(by_itself),
        "recovery_alone_median_s": _median(_times(by_itself)),
        "recovery_alone_worst_s": max(_times(by_itself), default=None),
        "recovery_overlapping_median_s": _median(_times(overlapping)),
        "recovery_overlapping_worst_s": max(_times(overlapping), default=None),
        "dead_worker_alone_worst_s": max(_times(_of(by_itself, "worker")), default=None),
        "dead_leader_alone_worst_s": max(_times(_of(by_itself, "leading scheduler")), default=None),
        "processes_died": len(outcome.died),
        "tracebacks": len(outcome.tracebacks),
        "calm_jobs_per_s": outcome.calm_jobs_per_s,
        "chaos_jobs_per_s": outcome.chaos_jobs_per_s,
        "throughput_ratio": ratio,
        "seconds": outcome.seconds,
    }
    notes = [*found.says, *outcome.died, *outcome.tracebacks, f"appendfsync {terms.fsync}, seed {terms.seed}"]
    notes.append("alone: nothing else was broken from the fault to the recovery that this goes through")
    if outcome.skipped:
        notes.append(f"{outcome.skipped} faults found nobody to strike")
    if outcome.refused:
        notes.append(f"{len(outcome.refused)} commands of clients ended with an error, were begun again; the last:")
        notes.append(outcome.refused[-1])
    return Report(
        "Faults, and the time until all was served again",
        _rows(outcome.injected, by_itself),
        summary,
        outcome.server,
        notes,
    )


def _rows(injected: Sequence[Injected], by_itself: Sequence[Injected]) -> list[Row]:
    rows: list[Row] = []
    for kind in dict.fromkeys(sorted(i.fault.kind for i in injected)):
        those = [i for i in injected if i.fault.kind == kind]
        its_own = [i for i in by_itself if i.fault.kind == kind]
        rows.append(
            {
                "fault": kind,
                "times": len(those),
                "median s": _median(_times(those)),
                "worst s": max(_times(those), default=None),
                "alone": len(its_own),
                "worst alone s": max(_times(its_own), default=None),
                "never": sum(not i.recovered for i in those),
            }
        )
    return rows


def _of(injected: Sequence[Injected], words: str) -> list[Injected]:
    return [i for i in injected if i.fault.kind.startswith(words)]


def _times(injected: Sequence[Injected]) -> list[float]:
    return [i.recovery_s for i in injected if i.recovery_s is not None]


def _median(times: Sequence[float]) -> float | None:
    return statistics.median(times) if times else None
