"""The report of a chaos run. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.chaotic.injecting import Injected
from benchmarks.chaotic.run import Outcome, Terms
from benchmarks.report import Report, Row, Value


def report_of(terms: Terms, outcome: Outcome) -> Report:
    """The tables and figures of a run."""
    found = outcome.findings
    times = [i.recovery_s for i in outcome.injected if i.recovery_s is not None]
    ratio = outcome.chaos_jobs_per_s / outcome.calm_jobs_per_s if outcome.calm_jobs_per_s else None
    summary: dict[str, Value] = {
        "lost": found.lost,
        "doubled": found.doubled,
        "stuck": found.stuck,
        "wrong": found.wrong,
        "given_up": found.given_up,
        "jobs": terms.jobs,
        "faults": len(outcome.injected),
        "not_recovered": sum(not i.recovered for i in outcome.injected),
        "recovery_median_s": statistics.median(times) if times else None,
        "recovery_worst_s": max(times, default=None),
        "processes_died": len(outcome.died),
        "tracebacks": len(outcome.tracebacks),
        "calm_jobs_per_s": outcome.calm_jobs_per_s,
        "chaos_jobs_per_s": outcome.chaos_jobs_per_s,
        "throughput_ratio": ratio,
        "seconds": outcome.seconds,
    }
    notes = [*found.says, *outcome.died, *outcome.tracebacks, f"appendfsync {terms.fsync}"]
    if outcome.skipped:
        notes.append(f"{outcome.skipped} faults found nobody to strike")
    if outcome.refused:
        notes.append(f"{len(outcome.refused)} commands of clients ended with an error, were begun again; the last:")
        notes.append(outcome.refused[-1])
    return Report(
        "Faults, and the time until all was served again", _rows(outcome.injected), summary, outcome.server, notes
    )


def _rows(injected: Sequence[Injected]) -> list[Row]:
    rows: list[Row] = []
    for kind in dict.fromkeys(sorted(i.fault.kind for i in injected)):
        those = [i for i in injected if i.fault.kind == kind]
        times = [i.recovery_s for i in those if i.recovery_s is not None]
        rows.append(
            {
                "fault": kind,
                "times": len(those),
                "median s": statistics.median(times) if times else None,
                "worst s": max(times, default=None),
                "never": sum(not i.recovered for i in those),
            }
        )
    return rows
