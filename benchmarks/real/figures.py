"""The figures of a cluster that was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

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
        ceilings: one before the first batch under our policy, and one after each.
        ours: the batches under our policy.
        baseline: the batch under another.
        simulated: ours, as predicted from the profiles and what the workers' speed was.
        from_profiles: likewise from the profiles alone.
        policy: name of ours.
        other: name of the baseline's.
    """

    beats: Mapping[str, Heartbeat]
    ceilings: Sequence[Ceiling]
    ours: Sequence[BatchRun]
    baseline: BatchRun
    simulated: Outcome
    from_profiles: Outcome
    policy: str
    other: str

    @property
    def ceiling(self) -> float:
        """Sum of the workers' rates, prompt and output tokens a second: the mean of all."""
        return fmean(ceiling.tokens_per_s for ceiling in self.ceilings)

    @property
    def shares(self) -> list[float]:
        """Share of the sum of each batch, from the submit of its first question to the last result."""
        return [run.tokens_per_s / around for run, around in zip(self.ours, self._around(), strict=True)]

    @property
    def share(self) -> float:
        """The median of these."""
        return median(self.shares)

    @property
    def backlog_share(self) -> float:
        """Share of the sum, from the first dispatch to the last; the median."""
        pairs = zip(self.ours, self._around(), strict=True)
        return median(run.backlog_tokens_per_s / around for run, around in pairs)

    @property
    def seconds(self) -> float:
        """Of a batch under our policy; the mean, as the workers' speed is that of the whole time."""
        return fmean(run.seconds for run in self.ours)

    @property
    def gain(self) -> float:
        """Gain over the baseline."""
        return median(run.tokens_per_s for run in self.ours) / self.baseline.tokens_per_s - 1

    def error(self, predicted: Outcome) -> float:
        """Error of a predicted makespan, relative to the measured one."""
        return predicted.makespan / self.seconds - 1

    def _around(self) -> list[float]:
        """The sum just before and just after each batch, their mean: the machine is never as fast as it was."""
        return [fmean(ceiling.tokens_per_s for ceiling in pair) for pair in pairwise(self.ceilings)]

    def rows(self) -> list[Row]:
        """A line for each run, in their order; the simulated ones last."""
        lengths = self.baseline
        rows = [self._of_ceiling(self.ceilings[0])]
        for run, after in zip(self.ours, self.ceilings[1:], strict=True):
            rows += [self._of_run(self.policy, run), self._of_ceiling(after)]
        rows.append(self._of_run(self.other, self.baseline))
        for name, simulated in (("simulated", self.simulated), ("by profiles", self.from_profiles)):
            rows.append(self._row(name, simulated.makespan, lengths.tokens, lengths.output_tokens, None))
        return rows

    def notes(self) -> list[str]:
        """A line for each worker, and one on the shares."""
        workers = sorted(self.beats)
        return [*(self._of_worker(place, name) for place, name in enumerate(workers)), self._on_shares()]

    def _of_ceiling(self, ceiling: Ceiling) -> Row:
        tokens, output = ceiling.tokens_per_s * ceiling.seconds, ceiling.output_tokens_per_s * ceiling.seconds
        return self._row("their sum", ceiling.seconds, tokens, output, ceiling.cpu)

    def _of_run(self, policy: str, run: BatchRun) -> Row:
        return self._row(policy, run.seconds, run.tokens, run.output_tokens, run.cpu)

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
        rates = ", ".join(f"{ceiling.rates[name]:.0f}" for ceiling in self.ceilings)
        ours = self.ours[-1]
        simulated = int(np.count_nonzero(self.simulated.device == place))
        idle, others_idle = (run.idle_at_end().get(name, run.seconds) for run in (ours, self.baseline))
        return (
            f"{len(self.beats)} workers: {name} ({beat.seats} seats, {beat.kv_tokens_total} KV tokens): {rates} "
            f"tokens/s from a private backlog; {ours.jobs_of(name)} questions ({simulated} simulated, "
            f"{self.baseline.jobs_of(name)} {self.other}); idle at the end {idle:.1f} s ({others_idle:.1f} s)"
        )

    def _on_shares(self) -> str:
        shares = ", ".join(f"{share:.4f}" for share in self.shares)
        copies = sum(run.counts.copies for run in self.ours)
        wasted = sum(run.counts.wasted_prompt_tokens + run.counts.wasted_output_tokens for run in self.ours)
        return (
            f"{len(self.beats)} workers: shares of the sum just before and after {shares} from submit to last result, "
            f"in the median {self.backlog_share:.4f} from the first dispatch to the last; {copies} second runs, "
            f"{wasted} tokens wasted by them"
        )


def summary_of(measured: Mapping[int, Measured]) -> dict[str, Value]:
    """The worst of the clusters, by number of workers, and then each of them."""
    found = measured.values()
    summary: dict[str, Value] = {
        "share_of_sum": min(cluster.share for cluster in found),
        "share_of_sum_with_backlog": min(cluster.backlog_share for cluster in found),
        "simulator_makespan_error": max(abs(cluster.error(cluster.simulated)) for cluster in found),
        "gain_over_round_robin": min(cluster.gain for cluster in found),
    }
    for count, cluster in measured.items():
        summary[f"share_of_sum_{count}"] = cluster.share
        summary[f"share_of_sum_with_backlog_{count}"] = cluster.backlog_share
        summary[f"simulator_makespan_error_{count}"] = cluster.error(cluster.simulated)
        summary[f"simulator_makespan_error_by_profiles_{count}"] = cluster.error(cluster.from_profiles)
        summary[f"gain_over_round_robin_{count}"] = cluster.gain
    return summary
