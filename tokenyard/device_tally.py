"""What each device did for a batch, and how near the cluster came to all of them at their best. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from broker.heartbeat import Heartbeat

#: A rate is sustained when it holds for about this long (seconds of work).
SUSTAINED_S = 10.0


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """One device's part of a batch. The rates of jobs are means over the whole run.

    Attributes:
        name: the worker's name; empty for jobs that ended without reaching a device.
        device: kind of device, as the worker says it.
        engine: kind of engine.
        model: model it runs.
        jobs: jobs that ended on it, the failed ones too.
        failed: how many of these failed.
        prompt_tokens: prompt tokens of these jobs, those found in a prefix cache too.
        output_tokens: tokens generated for these jobs.
        tokens_per_s: prompt and output tokens of its jobs, a second of the run.
        output_tokens_per_s: output tokens of its jobs, a second of the run.
        best_tokens_per_s: its best sustained rate by its own counters (see ``DeviceTally``); 0 where it never worked.
        busy_share: share of the run that it was busy, 0 to 1.
    """

    name: str
    device: str
    engine: str
    model: str
    jobs: int
    failed: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float
    output_tokens_per_s: float
    best_tokens_per_s: float
    busy_share: float


class DeviceTally:
    """Adds up heartbeats and ended jobs of one run. Feed it while the batch runs, and stop when it has ended.

    A device's *work* is what its own counters grow by: prompt tokens computed (not those found in a prefix cache)
    and tokens generated. It is *available* from a heartbeat to the next where both say ready or draining, and *busy*
    while it is available and has requests or its counters grow. Its *best sustained rate* is the largest work a
    second over any 10 seconds of busy time (idle gaps cut out), or over all its busy time where that is more, or
    shorter. Such a stretch is from the end of one step to that of another: a slow engine's step takes seconds, and all
    its tokens come at its end.

    A counter that drops began anew. What a device did before it was first seen, or between two incarnations of its
    worker, is not counted, and neither is that time.
    """

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._start: float | None = None
        self._end: float | None = None

    def observe(self, now: float, name: str, beat: Heartbeat) -> None:
        """Take in the last heartbeat of a worker, about twice a second; the same one again changes nothing.

        Args:
            now: seconds, on the clock that ``job_ended`` uses. Intervals between heartbeats come from their own
                stamps, so that reading them late does no harm.
            name: the worker.
            beat: its heartbeat.
        """
        self._device(name).observe(beat, beat.seen or now)
        if beat.state == "ready" or beat.running:
            self._start = now if self._start is None else min(self._start, now)

    def job_ended(self, worker: str, *, prompt_tokens: int, output_tokens: int, ok: bool, at: float) -> None:
        """Count a job that ended, ``at`` seconds on the clock of ``observe``; ``worker`` is empty where none ran it."""
        device = self._device(worker)
        device.jobs += 1
        device.failed += not ok
        device.prompt_tokens += prompt_tokens
        device.output_tokens += output_tokens
        self._start = at if self._start is None else min(self._start, at)
        self._end = at if self._end is None else max(self._end, at)

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first sight of a ready device or an ended job to the end of the last job."""
        return max(0.0, self._end - self._start) if self._start is not None and self._end is not None else 0.0

    def summaries(self) -> list[DeviceSummary]:
        """Every device that was seen, in the order in which they were first seen."""
        return [device.summary(name, self.elapsed_s) for name, device in self._devices.items()]

    def share_of_ideal(self) -> float | None:
        """Work done over the work that the devices would have done at their best: 0 to 1.

        The work of all devices, over the sum of each device's best sustained rate times the seconds it was
        available. Where all were there all the time that is the cluster's tokens a second over the sum of the best
        rates; a device that joins late or leaves early counts for the time it was there. A device that never
        worked shows no rate of its own and is left out. None where no device was seen working.
        """
        worked = [device for device in self._devices.values() if device.best > 0]
        ideal = sum(device.best * device.available_s for device in worked)
        return min(1.0, sum(device.work for device in worked) / ideal) if ideal > 0 else None

    def _device(self, name: str) -> _Device:
        return self._devices.setdefault(name, _Device())


@dataclass(slots=True)
class _Device:
    """Sums of one device. ``_window``: (busy seconds, work) whenever work grew in about the last ``SUSTAINED_S``."""

    jobs: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    work: int = 0
    busy_s: float = 0.0
    available_s: float = 0.0
    _beat: Heartbeat | None = None
    _at: float = 0.0
    _total: int = 0
    _rejoined: bool = False
    _window: deque[tuple[float, int]] = field(default_factory=lambda: deque([(0.0, 0)]))
    _best_window: float = 0.0

    @property
    def best(self) -> float:
        """Best sustained rate, tokens a second."""
        return max(self._best_window, self.work / self.busy_s) if self.busy_s > 0 else 0.0

    def observe(self, beat: Heartbeat, at: float) -> None:
        before, elapsed = self._beat, at - self._at
        if before is not None and elapsed == 0:
            return
        self._beat, self._at = beat, at
        if before is None or elapsed < 0:  # Redis' clock was set back: from here on as if first seen
            self._total = _total(beat)
            return
        self._rejoined = self._rejoined or beat.incarnation != before.incarnation
        growth = self._growth(beat)
        if beat.incarnation == before.incarnation and _available(before) and _available(beat):
            self._count(elapsed, growth, busy=growth > 0 or (before.running > 0 and beat.running > 0))

    def _growth(self, beat: Heartbeat) -> int:
        """Tokens since the last heartbeat that named any.

        A worker that joins anew says 0 once before it gives its counters, which then may just go on.
        """
        total = _total(beat)
        if total == 0:
            return 0
        goes_on = total >= self._total
        growth = total - self._total if goes_on else total
        if self._rejoined and goes_on:
            growth = 0
        self._total, self._rejoined = total, False
        return growth

    def _count(self, elapsed: float, growth: int, *, busy: bool) -> None:
        self.available_s += elapsed
        if not busy:
            return
        self.busy_s += elapsed
        self.work += growth
        if not growth:
            return
        window = self._window
        window.append((self.busy_s, self.work))
        while len(window) > 2 and self.busy_s - window[1][0] >= SUSTAINED_S:
            window.popleft()
        since, work = window[0]
        if self.busy_s - since >= SUSTAINED_S:
            self._best_window = max(self._best_window, (self.work - work) / (self.busy_s - since))

    def summary(self, name: str, run_s: float) -> DeviceSummary:
        beat = self._beat
        return DeviceSummary(
            name=name,
            device=beat.device if beat else "",
            engine=beat.engine if beat else "",
            model=beat.model if beat else "",
            jobs=self.jobs,
            failed=self.failed,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            tokens_per_s=(self.prompt_tokens + self.output_tokens) / run_s if run_s > 0 else 0.0,
            output_tokens_per_s=self.output_tokens / run_s if run_s > 0 else 0.0,
            best_tokens_per_s=self.best,
            busy_share=min(1.0, self.busy_s / run_s) if run_s > 0 else 0.0,
        )


def _available(beat: Heartbeat) -> bool:
    return beat.state in ("ready", "draining")


def _total(beat: Heartbeat) -> int:
    return beat.prompt_tokens_total + beat.output_tokens_total
