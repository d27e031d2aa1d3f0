"""What a changed cluster does better or worse with the same jobs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from planner.simulation_report import DeviceUse, SimulationReport


@dataclass(frozen=True, slots=True)
class Difference:
    """Two runs of the same jobs, each figure after less before.

    Attributes:
        change: what changed, as it was asked for.
        jobs_per_s: jobs done a second.
        tokens_per_s: prompt and output tokens.
        bound_jobs_per_s: what no scheduler passes.
        makespan_s: seconds to the last result.
        median_s: seconds from arrival to result, the median; None where no job was done.
        added: what the devices did that were not there before.
        gain_jobs_per_s_each: ``jobs_per_s`` by device added (or taken away); None where as many came as went.
    """

    change: str
    jobs_per_s: float
    tokens_per_s: float
    bound_jobs_per_s: float
    makespan_s: float
    median_s: float | None
    added: list[DeviceUse]
    gain_jobs_per_s_each: float | None


def difference(change: str, before: SimulationReport, after: SimulationReport) -> Difference:
    """What became of it."""
    there = {use.name for use in before.devices}
    more = len(after.devices) - len(before.devices)
    gain = after.jobs_per_s - before.jobs_per_s
    medians = before.arrival_to_result, after.arrival_to_result
    return Difference(
        change=change,
        jobs_per_s=gain,
        tokens_per_s=after.tokens_per_s - before.tokens_per_s,
        bound_jobs_per_s=after.reached.bound_jobs_per_s - before.reached.bound_jobs_per_s,
        makespan_s=after.makespan_s - before.makespan_s,
        median_s=medians[1].p50 - medians[0].p50 if medians[0] and medians[1] else None,
        added=[use for use in after.devices if use.name not in there],
        gain_jobs_per_s_each=gain / abs(more) if more else None,
    )
