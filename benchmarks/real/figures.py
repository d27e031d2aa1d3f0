"""The figures of a cluster that was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks.real.batch import BatchRun
from benchmarks.real.ceiling import Ceiling
from benchmarks.real.cpu import CpuUse
from benchmarks.report import Row, Value
from broker.heartbeat import Heartbeat
from planner.simulate import Outcome

_ROLES = ("workers", "client", "server", "scheduler")


@dataclass(frozen=True, slots=True)
class Measured:
    """One cluster.

    Attributes:
        beats: a heartbeat of each worker.
        ceilings: one before and one after the batch under our policy.
        ours: the batch under our policy.
        baseline: the batch under another.
        simulated: ours, as predicted.
        policy: name of ours.
        other: name of the baseline's.
    """

    beats: Mapping[str, Heartbeat]
    ceilings: tuple[Ceiling, Ceiling]
    ours: BatchRun
    baseline: BatchRun
    simulated: Outcome
    policy: str
    other: str

    @property
    def ceiling(self) -> float:
        """Sum of the workers' rates, prompt and output tokens a second: the mean of the two."""
        return fmean(ceiling.tokens_per_s for ceiling in self.ceilings)

    @property
    def share(self) -> float:
        """Share of the sum, from the submit of the first question to the last result."""
        return self.ours.tokens_per_s / self.ceiling

    @property
    def backlog_share(self) -> float:
        """Share of the sum, from the first dispatch to the last."""
        return self.ours.backlog_tokens_per_s / self.ceiling

    @property
    def simulator_error(self) -> float:
        """Error of the predicted makespan, relative to the measured one."""
        return self.simulated.makespan / self.ours.seconds - 1

    @property
    def gain(self) -> float:
        """Gain over the baseline."""
        return self.ours.tokens_per_s / self.baseline.tokens_per_s - 1

    def rows(self) -> list[Row]:
        """A line for each run, in their order; the simulated one last."""
        first, second = self.ceilings
        lengths, simulated = self.baseline, self.simulated.makespan
        return [
            self._of_ceiling(first),
            self._row(self.policy, self.ours.seconds, self.ours.tokens, self.ours.output_tokens, self.ours.cpu),
            self._of_ceiling(second),
            self._row(self.other, lengths.seconds, lengths.tokens, lengths.output_tokens, lengths.cpu),
            self._row("simulated", simulated, lengths.tokens, lengths.output_tokens, None),
        ]

    def notes(self) -> list[str]:
        """A line for each worker, and one on the shares."""
        workers = sorted(self.beats)
        return [*(self._of_worker(place, name) for place, name in enumerate(workers)), self._on_shares()]

    def _of_ceiling(self, ceiling: Ceiling) -> Row:
        tokens, output = ceiling.tokens_per_s * ceiling.seconds, ceiling.output_tokens_per_s * ceiling.seconds
        return self._row("their sum", ceiling.seconds, tokens, output, ceiling.cpu)

    def _row(self, run: str, seconds: float, tokens: float, output: float, cpu: CpuUse | None) -> Row:
        row: dict[str, Value] = {
            "workers": len(self.beats),
            "run": run,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "output_per_s": output / seconds,
            "share_of_sum": tokens / seconds / self.ceiling,
        }
        row |= {f"{role}_%": 100 * cpu.roles.get(role, 0.0) if cpu else None for role in _ROLES}
        return {**row, "others_%": 100 * cpu.others if cpu else None, "load": cpu.load_before if cpu else None}

    def _of_worker(self, place: int, name: str) -> str:
        beat = self.beats[name]
        rates = " and ".join(f"{ceiling.rates[name]:.0f}" for ceiling in self.ceilings)
        simulated = int(np.count_nonzero(self.simulated.device == place))
        idle, others_idle = (run.idle_at_end().get(name, run.seconds) for run in (self.ours, self.baseline))
        return (
            f"{len(self.beats)} workers: {name} ({beat.seats} seats, {beat.kv_tokens_total} KV tokens): {rates} "
            f"tokens/s from a private backlog; {self.ours.jobs_of(name)} questions ({simulated} simulated, "
            f"{self.baseline.jobs_of(name)} {self.other}); idle at the end {idle:.1f} s ({others_idle:.1f} s)"
        )

    def _on_shares(self) -> str:
        ours, counts = self.ours, self.ours.counts
        return (
            f"{len(self.beats)} workers: share of the sum {self.share:.4f} from submit to last result "
            f"({ours.seconds:.1f} s), {self.backlog_share:.4f} from the first dispatch to the last "
            f"({ours.backlog_s:.1f} s); {counts.copies} second runs, "
            f"{counts.wasted_prompt_tokens + counts.wasted_output_tokens} tokens wasted by them"
        )


def summary_of(measured: Mapping[int, Measured]) -> dict[str, Value]:
    """The worst of the clusters, by number of workers, and then each of them."""
    found = measured.values()
    summary: dict[str, Value] = {
        "share_of_sum": min(cluster.share for cluster in found),
        "share_of_sum_with_backlog": min(cluster.backlog_share for cluster in found),
        "simulator_makespan_error": max(abs(cluster.simulator_error) for cluster in found),
        "gain_over_round_robin": min(cluster.gain for cluster in found),
    }
    for count, cluster in measured.items():
        summary[f"share_of_sum_{count}"] = cluster.share
        summary[f"share_of_sum_with_backlog_{count}"] = cluster.backlog_share
        summary[f"simulator_makespan_error_{count}"] = cluster.simulator_error
        summary[f"gain_over_round_robin_{count}"] = cluster.gain
    return summary
